//! Control session between operator and roles, and the queue protocol between broker and dataflows.

pub mod enroll;
pub mod facts;
pub mod handover;
pub mod plan;
pub mod proto;
pub mod queue;
pub mod report;
pub mod resource;
pub mod session;
pub mod transport;

pub use facts::RoleFacts;
pub use handover::{GivePlan, HandOver, PeersPlan, Stage, TakePlan, Turn};
pub use plan::{ObjectRef, PlanResource, ResourceKey};
pub use report::{Aspect, AspectKind, Discovered, Health, Nack, Report, Schema};
pub use resource::Resource;
pub use session::{
    agent::{Agent, AgentOptions, Change, KeyWrap, Reporter, Role},
    server::{Authority, ControlHandle, ControlOptions, ControlServer, Observation, Observed, RoleKey},
};
