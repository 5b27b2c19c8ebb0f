//! The cloud's end of the edges' streams.
//!
//! | module | what |
//! |---|---|
//! | `session` | one stream: who may open it, what arrives, what is sent, how it ends |
//! | `sessions` | the streams that are open: at most one for each edge |
//! | `lanes` | credit, and batches put together from their parts |
//! | `batch` | from a batch to a commit and its acknowledgement |
//! | `registry` | what an edge says about its assets |

mod batch;
mod lanes;
mod registry;
mod session;
mod sessions;

pub(crate) use batch::Ingest;
pub(crate) use lanes::Budget;
pub(crate) use session::LinkService;
pub(crate) use sessions::Sessions;
