//! What a sealed row is bound to. The keys are the same everywhere here: in stores they never are.

use std::path::Path;

use super::{
    Cipher,
    keyring::Keyring,
    keys::{KEY_LEN, MasterKey},
};
use crate::keys::{self, Table};

fn keyring() -> Keyring {
    Keyring::new(&MasterKey::new("spring".to_owned(), [1; KEY_LEN]), false).unwrap()
}

fn cipher(keyring: Keyring) -> Cipher {
    Cipher::new(Path::new("keys"), keyring)
}

#[test]
fn a_row_opens_in_its_store_its_keyspace_and_under_its_key_only() {
    let keyring = keyring();
    let mut of_other_store = keyring.clone();
    of_other_store.store_id[15] ^= 1;
    let (here, elsewhere) = (cipher(keyring), cipher(of_other_store));
    let (key, other_key) = (keys::entry(1, 4), keys::entry(1, 5));
    let sealed = here.seal(Table::Queue, &key, &key, b"row").unwrap();
    let open = |cipher: &Cipher, table, key: &[u8]| cipher.open(table, key, &sealed).value.into_owned();
    assert_eq!(open(&here, Table::Queue, &key), b"row");
    assert_eq!(open(&elsewhere, Table::Queue, &key), b"", "another store");
    assert_eq!(open(&here, Table::Dead, &key), b"", "another keyspace");
    assert_eq!(open(&here, Table::Queue, &other_key), b"", "another key");
}

#[test]
fn a_row_with_any_byte_changed_or_missing_does_not_open() {
    let cipher = cipher(keyring());
    let stored = cipher.stored_key(Table::Session, b"client");
    let sealed = cipher.seal(Table::Session, b"client", &stored, b"row").unwrap();
    let opened = cipher.open(Table::Session, &stored, &sealed);
    assert_eq!((&*opened.key, &*opened.value), (&b"client"[..], &b"row"[..]));
    for at in 0..sealed.len() {
        let mut changed = sealed.to_vec();
        changed[at] ^= 1;
        for bad in [&changed[..], &sealed[..at]] {
            let opened = cipher.open(Table::Session, &stored, bad);
            assert_eq!((&*opened.key, &*opened.value), (&*stored, &b""[..]), "byte {at}");
        }
    }
}
