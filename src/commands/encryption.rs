//! Options of encryption at rest.

use std::path::PathBuf;

use foreshore_store::StoreOptions;

/// What stores are encrypted with.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Encryption {
    /// Encrypt stores of brokers, and plans and certificates of roles, with the keys in this folder: files of 32 bytes, and
    /// a file `active` that names the one in use. Another active key is taken up while they run. Keep the folder on another
    /// disk than the data.
    #[arg(
        long = "encryption-keys",
        value_name = "FOLDER",
        env = "FORESHORE_ENCRYPTION_KEYS"
    )]
    pub(crate) keys: Option<PathBuf>,
    /// Encrypt a store that is there already and not encrypted. Without it, such a store is refused where there are keys:
    /// it may be what somebody put in the place of the encrypted one. Leave it out again when all is encrypted.
    #[arg(long = "encrypt-existing", requires = "keys")]
    pub(crate) existing: bool,
}

impl Encryption {
    /// Options of a store, the others as usual.
    pub(crate) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            encryption_keys: self.keys.clone(),
            encrypt_existing: self.existing,
            ..StoreOptions::default()
        }
    }
}
