//! Proving a store: its journals are whole, every row decodes, and the rows agree with each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use serde::Serialize;

use super::{
    ClosedStore, bodies,
    findings::{Finding, Findings, MAX_FINDINGS, describe},
};
use crate::{
    cipher::Age,
    entry::{Blob, EntryId, Inflight, ReceiverId, StateEntry},
    error::StoreError,
    fjall_store::{
        engine::FjallEngine,
        lsm::{Damage, Place},
        merge,
        salvage::read_range,
    },
    keys::{self, Table},
    ledger::Counts,
    record::{self, EntryRow},
    rows::{self, PathRow, PositionRow},
    topics::TopicTable,
};

/// Judges the state of a session or a will, which the store does not understand; an error says what is wrong with it.
pub type JudgeBlob<'j> = &'j dyn Fn(&Blob) -> Result<(), String>;

/// Judges what the store keeps for the broker and does not understand.
#[derive(Clone, Copy)]
pub struct Judges<'j> {
    /// Judges the state of a session.
    pub session: JudgeBlob<'j>,
    /// Judges a will.
    pub will: JudgeBlob<'j>,
    /// Judges an entry of the state store.
    pub state: &'j dyn Fn(&StateEntry) -> Result<(), String>,
}

impl std::fmt::Debug for Judges<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Judges").finish_non_exhaustive()
    }
}

/// What a proof found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Whether the store was closed in order. After a crash the end of the last journal may be torn, which is no damage:
    /// what stood there was not acknowledged.
    pub closed_in_order: bool,
    /// Commits so far.
    pub commits: u64,
    /// How it is encrypted, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionState>,
    /// The journals, oldest first.
    pub journals: Vec<JournalState>,
    /// The keyspaces.
    pub keyspaces: Vec<KeyspaceState>,
    /// Sum of the ledger of all paths, as their queues really are.
    pub ledger: LedgerSum,
    /// What is wrong: the first thousand.
    pub findings: Vec<Finding>,
    /// Findings of [`super::Severity::Damage`], those beyond the first thousand included.
    pub damage: u64,
    /// Findings of [`super::Severity::Minor`].
    pub minor: u64,
}

/// How a store is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionState {
    /// Name of the user's key that opens the store; no other one is needed.
    pub key: String,
    /// Rows that are sealed with the current key of the store.
    pub current: u64,
    /// Rows that are sealed with an older key of the store.
    pub older: u64,
    /// Rows that are not sealed.
    pub plain: u64,
}

/// A journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalState {
    /// Name of the file.
    pub file: String,
    /// Batches that are whole.
    pub batches: usize,
    /// Whether it ends in the middle of a batch.
    pub torn: bool,
    /// Batches that are missing between others.
    pub lost: u64,
}

/// A keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyspaceState {
    /// Its name.
    pub name: &'static str,
    /// Rows that could be read.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Rows among them that can't be decoded.
    pub damaged: u64,
    /// Places where something can't be read at all.
    pub unreadable: u64,
}

/// Sum of ledgers: `received = delivered + waiting + dead_lettered + dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerSum {
    /// Paths that there are.
    pub paths: u64,
    /// Entries that ever entered them.
    pub received: u64,
    /// Entries that were acknowledged.
    pub delivered: u64,
    /// Entries that are in the queues, as they were counted now.
    pub waiting: u64,
    /// Entries that became dead letters.
    pub dead_lettered: u64,
    /// Entries that a policy dropped.
    pub dropped: u64,
}

impl Verification {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage == 0
    }
}

impl ClosedStore {
    /// Reads everything and says what is wrong. Memory is taken for each receiver, not for each message.
    ///
    /// # Errors
    /// None for damage, which is what is reported.
    pub fn verify(&self, judges: Judges<'_>) -> Result<Verification, StoreError> {
        let mut findings = Findings::default();
        let journals = self.judge_journals(&mut findings);
        if self.is_suspect {
            let found = "a broker met something that it could not read: its next start reads everything";
            findings.minor("suspect", String::new(), found.to_owned());
        }
        if self.directory.is_format_damaged {
            let found = "it can't be read: the next start writes it anew";
            findings.damage("format", String::new(), found.to_owned());
        }
        if self.is_mark_damaged {
            let found =
                "it can't be read: the next start takes the store for one that was not closed in order";
            findings.damage("clean", String::new(), found.to_owned());
        }
        let mut proof = match &self.engine {
            Ok(engine) => Proof::new(engine, findings).run(judges)?,
            Err(error) => self.survey(findings, error)?,
        };
        if self.engine.is_ok()
            && let Some(expected) = self.expected_commits
            && proof.position.commits < expected
        {
            let found = format!("found {} commits, there were {expected}", proof.position.commits);
            proof.findings.damage("clean", String::new(), found);
        }
        let Found {
            findings: Findings { list, damage, minor },
            ages,
            keyspaces,
            position,
            ledger,
        } = proof;
        let cipher = self.engine.as_ref().ok().and_then(FjallEngine::cipher);
        let encryption = cipher.map(|cipher| EncryptionState {
            key: cipher.state().key,
            ..ages
        });
        Ok(Verification {
            closed_in_order: self.expected_commits.is_some(),
            commits: position.commits,
            encryption,
            journals,
            keyspaces,
            ledger,
            findings: list,
            damage,
            minor,
        })
    }

    /// Reads a database that can't be opened, file by file, and says which of them are damaged.
    fn survey(&self, mut findings: Findings, error: &StoreError) -> Result<Found, StoreError> {
        findings.damage("data", String::new(), error.to_string());
        let (data, mut damage) = (self.directory.data(), Damage::default());
        let mut keyspaces = Table::ALL.map(|table| KeyspaceState {
            name: table.name(),
            ..KeyspaceState::default()
        });
        merge::rows(&data, &mut damage, &mut |table, key, value| {
            let state = &mut keyspaces[table as usize];
            state.rows += 1;
            state.bytes += (key.len() + value.len()) as u64;
            Ok(())
        })?;
        for Place { file, found } in damage.places {
            let file = file.strip_prefix(&data).unwrap_or(&file);
            findings.damage(&format!("data/{}", file.display()), String::new(), found);
        }
        Ok(Found {
            findings,
            keyspaces: keyspaces.into(),
            ..Found::default()
        })
    }

    fn judge_journals(&self, findings: &mut Findings) -> Vec<JournalState> {
        let mut states = Vec::with_capacity(self.journals.len());
        for journal in &self.journals {
            let file = journal.name();
            if journal.damaged {
                let place = format!("data/{file}");
                for (from, to) in journal.holes() {
                    let found = "no whole batch is there, and one follows".to_owned();
                    findings.damage(&place, format!("bytes {from} to {to}"), found);
                }
                if journal.is_torn() {
                    let found = "it ends in the middle of a batch, which no crash explains".to_owned();
                    findings.damage(&place, format!("byte {}", journal.end()), found);
                }
            }
            states.push(JournalState {
                file,
                batches: journal.batches(),
                torn: journal.is_torn(),
                lost: journal.lost_commits,
            });
        }
        states
    }
}

/// What reading everything gave.
#[derive(Default)]
struct Found {
    findings: Findings,
    /// How rows are sealed; the name of the key is added later.
    ages: EncryptionState,
    keyspaces: Vec<KeyspaceState>,
    position: PositionRow,
    ledger: LedgerSum,
}

/// Reads everything.
struct Proof<'e> {
    engine: &'e FjallEngine,
    found: Found,
    /// Receivers whose rows are still to be removed.
    graves: BTreeSet<ReceiverId>,
    paths: BTreeMap<ReceiverId, PathRow>,
    /// The largest id of an entry or of a retained message.
    last_id: EntryId,
    /// Whether the row that says where the store stands is missing.
    stands_nowhere: bool,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    entries: u64,
    bytes: u64,
    first: Option<EntryId>,
    /// Entries whose record others share.
    shared: u64,
    damaged: u64,
}

/// Dead letters of a path.
#[derive(Clone, Copy, Debug, Default)]
struct Dead {
    letters: u64,
    bytes: u64,
    first: Option<EntryId>,
}

fn text(error: &StoreError) -> String {
    error.to_string()
}

impl<'e> Proof<'e> {
    fn new(engine: &'e FjallEngine, findings: Findings) -> Self {
        Self {
            engine,
            found: Found {
                findings,
                ..Found::default()
            },
            graves: BTreeSet::new(),
            paths: BTreeMap::new(),
            last_id: 0,
            stands_nowhere: false,
        }
    }

    fn run(mut self, judges: Judges<'_>) -> Result<Found, StoreError> {
        self.meta()?;
        self.paths()?;
        self.names()?;
        let queues = self.queues()?;
        let dead = self.dead_letters()?;
        self.rows(Table::Body, |_, row| {
            record::decode_body(row).map(drop).map_err(|error| text(&error))
        })?;
        self.rows(Table::Left, |_, row| {
            record::decode_references(row)
                .map(drop)
                .map_err(|error| text(&error))
        })?;
        let sharing = queues.iter().filter(|(_, queue)| queue.shared > 0);
        let sharing: Vec<_> = sharing.map(|(receiver, _)| *receiver).collect();
        bodies::check(self.engine, &sharing, &mut self.found.findings)?;
        self.inflight()?;
        self.blobs(Table::Session, judges.session)?;
        self.blobs(Table::Will, judges.will)?;
        self.rows(Table::State, |key, row| {
            (judges.state)(&rows::decode_state(key, row).map_err(|error| text(&error))?)
        })?;
        self.retained()?;
        self.rows(Table::Source, |key, row| {
            let source = std::str::from_utf8(key).map_err(|error| error.to_string())?;
            rows::decode_source(source, row)
                .map(drop)
                .map_err(|error| text(&error))
        })?;
        self.balance(&queues, &dead);
        self.stands_somewhere();
        Ok(self.found)
    }

    /// Reads a keyspace and judges its rows.
    fn rows(
        &mut self,
        table: Table,
        mut judge: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), StoreError> {
        let mut state = KeyspaceState {
            name: table.name(),
            ..KeyspaceState::default()
        };
        let (mut unreadable, mut places) = (0, Vec::new());
        let Found { findings, ages, .. } = &mut self.found;
        let mut visit = |stored: &keys::Bytes, value: &keys::Bytes| {
            state.rows += 1;
            state.bytes += (stored.len() + value.len()) as u64;
            if let Some(cipher) = self.engine.cipher() {
                *match cipher.age(value) {
                    Age::Current => &mut ages.current,
                    Age::Older => &mut ages.older,
                    Age::Plain => &mut ages.plain,
                } += 1;
            }
            let (key, row) = self.engine.opened(table, stored, value);
            if let Err(found) = judge(&key, &row) {
                state.damaged += 1;
                findings.damage(table.name(), describe(table, &key), found);
            }
            Ok(ControlFlow::Continue(()))
        };
        read_range(self.engine, table, &[], None, &mut visit, &mut |key, error| {
            unreadable += 1;
            if places.len() < MAX_FINDINGS {
                places.push((
                    describe(table, key),
                    format!("what follows can't be read: {error}"),
                ));
            }
        })?;
        state.unreadable = unreadable;
        for (key, found) in places {
            findings.damage(table.name(), key, found);
        }
        self.found.keyspaces.push(state);
        Ok(())
    }

    /// A store that holds anything has a row that says where it stands; one that was only opened has none yet.
    fn stands_somewhere(&mut self) {
        let holds = |state: &KeyspaceState| state.name != Table::Meta.name() && state.rows > 0;
        if self.stands_nowhere && self.found.keyspaces.iter().any(holds) {
            let found = "the row that says where the store stands is missing or damaged".to_owned();
            let key = describe(Table::Meta, keys::POSITION);
            self.found.findings.damage(Table::Meta.name(), key, found);
        }
    }

    fn meta(&mut self) -> Result<(), StoreError> {
        let (mut position, mut graves) = (None, BTreeSet::new());
        self.rows(Table::Meta, |key, row| {
            if key == keys::POSITION {
                position = Some(PositionRow::decode(row).map_err(|error| text(&error))?);
            } else if key.starts_with(keys::OPENING) {
                rows::decode_opening(row).map_err(|error| text(&error))?;
            } else if let Some(number) = key.strip_prefix(keys::GRAVE) {
                graves.extend(keys::split_number(number));
                rows::decode_number(row).map_err(|error| text(&error))?;
            } else if key.starts_with(keys::ENDED) {
                let ended = rows::decode_ended("", row).map_err(|error| text(&error))?;
                if let Some(found) = imbalance(&ended.counts, 0) {
                    return Err(found);
                }
            } else if key == keys::TOPICS {
                TopicTable::decode(row).map_err(|error| text(&error))?;
            } else {
                return Err("nothing of the store has this key".to_owned());
            }
            Ok(())
        })?;
        self.stands_nowhere = position.is_none();
        self.found.position = position.unwrap_or_default();
        self.graves = graves;
        Ok(())
    }

    fn paths(&mut self) -> Result<(), StoreError> {
        let mut paths = BTreeMap::new();
        self.rows(Table::Path, |key, row| {
            let receiver = keys::split_number(key).ok_or("its key is no receiver")?;
            paths.insert(receiver, PathRow::decode(row).map_err(|error| text(&error))?);
            Ok(())
        })?;
        self.paths = paths;
        Ok(())
    }

    /// Every path has a receiver with a name, and every name leads to its receiver.
    fn names(&mut self) -> Result<(), StoreError> {
        let mut names: BTreeMap<ReceiverId, String> = BTreeMap::new();
        self.rows(Table::Receiver, |key, row| {
            let receiver = keys::split_number(key).ok_or("its key is no receiver")?;
            names.insert(receiver, rows::decode_name(row).map_err(|error| text(&error))?);
            Ok(())
        })?;
        let mut led = BTreeSet::new();
        self.rows(Table::Name, |key, row| {
            let receiver = rows::decode_number(row).map_err(|error| text(&error))?;
            if names.get(&receiver).is_some_and(|name| name.as_bytes() == key) {
                led.insert(receiver);
                Ok(())
            } else {
                Err(format!(
                    "it leads to receiver {receiver}, which has another name or is missing"
                ))
            }
        })?;
        let (paths, findings) = (&self.paths, &mut self.found.findings);
        for receiver in paths.keys().chain(names.keys()).collect::<BTreeSet<_>>() {
            let missing = [
                (!paths.contains_key(receiver)).then_some("its totals are missing or damaged"),
                (!names.contains_key(receiver)).then_some("its name is missing or damaged"),
                (names.contains_key(receiver) && !led.contains(receiver))
                    .then_some("its name does not lead to it"),
            ];
            for found in missing.into_iter().flatten() {
                let key = describe(Table::Receiver, &keys::number(*receiver));
                findings.damage(Table::Receiver.name(), key, found.to_owned());
            }
        }
        Ok(())
    }

    fn queues(&mut self) -> Result<BTreeMap<ReceiverId, Queue>, StoreError> {
        let mut queues: BTreeMap<ReceiverId, Queue> = BTreeMap::new();
        let mut last_id = 0;
        self.rows(Table::Queue, |key, row| {
            let (receiver, id) = keys::split_entry(key).ok_or("its key is no receiver and entry")?;
            let queue = queues.entry(receiver).or_default();
            queue.entries += 1;
            queue.first.get_or_insert(id);
            last_id = last_id.max(id);
            match EntryRow::decode(row) {
                Ok(entry) => {
                    queue.bytes += u64::from(entry.size);
                    queue.shared += u64::from(matches!(entry.body, record::BodyOf::Shared { .. }));
                    Ok(())
                }
                Err(error) => {
                    queue.damaged += 1;
                    Err(text(&error))
                }
            }
        })?;
        self.last_id = self.last_id.max(last_id);
        Ok(queues)
    }

    fn dead_letters(&mut self) -> Result<BTreeMap<ReceiverId, Dead>, StoreError> {
        let mut dead: BTreeMap<ReceiverId, Dead> = BTreeMap::new();
        self.rows(Table::Dead, |key, row| {
            let (receiver, id) = keys::split_entry(key).ok_or("its key is no receiver and entry")?;
            let dead = dead.entry(receiver).or_default();
            dead.letters += 1;
            dead.bytes += row.len() as u64;
            dead.first.get_or_insert(id);
            record::decode_dead_letter(id, row)
                .map(drop)
                .map_err(|error| text(&error))
        })?;
        Ok(dead)
    }

    fn inflight(&mut self) -> Result<(), StoreError> {
        let (paths, graves) = (std::mem::take(&mut self.paths), std::mem::take(&mut self.graves));
        let mut strays = BTreeSet::new();
        let read = self.rows(Table::Inflight, |key, row| {
            let slot = keys::split_slot(key).ok_or("its key is no packet of a session")?;
            if !paths.contains_key(&slot.session) && !graves.contains(&slot.session) {
                strays.insert(slot.session);
            }
            match rows::decode_inflight(row).map_err(|error| text(&error))? {
                Inflight::Received | Inflight::Sent { .. } | Inflight::Released => Ok(()),
            }
        });
        (self.paths, self.graves) = (paths, graves);
        for session in strays {
            let found = "packets in flight of a session that is not there".to_owned();
            self.found
                .findings
                .minor(Table::Inflight.name(), format!("session {session}"), found);
        }
        read
    }

    fn blobs(&mut self, table: Table, judge: JudgeBlob<'_>) -> Result<(), StoreError> {
        self.rows(table, |key, row| {
            let client = std::str::from_utf8(key).map_err(|error| error.to_string())?;
            judge(&rows::decode_blob(client, row).map_err(|error| text(&error))?)
        })
    }

    fn retained(&mut self) -> Result<(), StoreError> {
        let mut last_id = 0;
        self.rows(Table::Retained, |key, row| {
            let retained = record::decode_retained(row).map_err(|error| text(&error))?;
            last_id = last_id.max(retained.id);
            let topic = retained.record.topic.as_str();
            if topic.as_bytes() == key {
                Ok(())
            } else {
                Err(format!("it holds a message of the topic {topic:?}"))
            }
        })?;
        self.last_id = self.last_id.max(last_id);
        Ok(())
    }

    /// Totals agree with what the queues hold.
    fn balance(&mut self, queues: &BTreeMap<ReceiverId, Queue>, dead: &BTreeMap<ReceiverId, Dead>) {
        let Found {
            findings,
            position,
            ledger,
            ..
        } = &mut self.found;
        for (receiver, path) in &self.paths {
            let queue = queues.get(receiver).copied().unwrap_or_default();
            let dead = dead.get(receiver).copied().unwrap_or_default();
            let counts = &path.counts;
            ledger.paths += 1;
            ledger.received += counts.received;
            ledger.delivered += counts.delivered;
            ledger.waiting += queue.entries;
            ledger.dead_lettered += counts.dead_lettered;
            ledger.dropped += counts.dropped.values().sum::<u64>();
            let key = || describe(Table::Path, &keys::number(*receiver));
            if let Some(found) = imbalance(counts, queue.entries) {
                findings.damage(Table::Path.name(), key(), found);
            }
            if let Some(first) = queue.first.filter(|first| *first < path.head) {
                let found = format!(
                    "entry {first} lies below the head {}: it had been settled",
                    path.head
                );
                findings.damage(Table::Path.name(), key(), found);
            }
            if queue.damaged == 0 && queue.bytes != path.waiting_bytes {
                let found = format!("{} bytes wait, {} are counted", queue.bytes, path.waiting_bytes);
                findings.minor(Table::Path.name(), key(), found);
            }
            if dead.bytes != path.dead_letter_bytes {
                let counted = path.dead_letter_bytes;
                let found = format!("dead letters have {} bytes, {counted} are counted", dead.bytes);
                findings.minor(Table::Path.name(), key(), found);
            }
            if let Some(first) = dead.first.filter(|first| *first < path.dead_letter_head) {
                let found = format!(
                    "dead letter {first} lies below the head {}",
                    path.dead_letter_head
                );
                findings.minor(Table::Path.name(), key(), found);
            }
        }
        let known =
            |receiver: &ReceiverId| self.paths.contains_key(receiver) || self.graves.contains(receiver);
        for (receiver, queue) in queues.iter().filter(|(receiver, _)| !known(receiver)) {
            let key = describe(Table::Path, &keys::number(*receiver));
            let found = format!("{} entries of a receiver that is not there", queue.entries);
            findings.damage(Table::Queue.name(), key, found);
        }
        for (receiver, dead) in dead.iter().filter(|(receiver, _)| !known(receiver)) {
            let key = describe(Table::Path, &keys::number(*receiver));
            let found = format!("{} dead letters of a receiver that is not there", dead.letters);
            findings.damage(Table::Dead.name(), key, found);
        }
        let last_receiver = self.paths.last_key_value().map_or(0, |(receiver, _)| *receiver);
        for (what, next, last) in [
            ("entry", position.next_id, self.last_id),
            ("receiver", position.next_receiver, last_receiver),
        ] {
            if last > 0 && next <= last {
                let found = format!("the next {what} would be {next}, and {last} is there");
                let key = describe(Table::Meta, keys::POSITION);
                findings.damage(Table::Meta.name(), key, found);
            }
        }
    }
}

/// Why a ledger line does not balance with so many entries waiting.
fn imbalance(counts: &Counts, waiting: u64) -> Option<String> {
    let Counts {
        received,
        delivered,
        dead_lettered,
        dropped,
        ..
    } = counts;
    let dropped: u64 = dropped.values().sum();
    let accounted = [*delivered, waiting, *dead_lettered, dropped]
        .into_iter()
        .fold(0_u64, u64::saturating_add);
    (accounted != *received).then(|| {
        format!(
            "received {received} is not delivered {delivered} + waiting {waiting} + dead-lettered {dead_lettered} + dropped {dropped}"
        )
    })
}
