//! Admitted edges, the tokens that admit them, and their processes.

use foreshore_edgelink::Refusal;
use foreshore_tls::Fingerprint;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Context, StoreError};

/// An edge that was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EdgeRow {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// The key that it was admitted with, and must show.
    pub(crate) key: Fingerprint,
    pub(crate) admitted_at: i64,
    pub(crate) certificate_ends_at: i64,
    pub(crate) revoked_at: Option<i64>,
    pub(crate) last_seen_at: Option<i64>,
}

/// A token that admits an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) hash: Fingerprint,
    pub(crate) edge: String,
    pub(crate) ends_at: Option<i64>,
}

/// An edge that asks to be admitted.
#[derive(Clone, Debug)]
pub(crate) struct Applicant {
    pub(crate) token: Fingerprint,
    pub(crate) edge: String,
    pub(crate) key: Fingerprint,
    /// End of the certificate that it gets.
    pub(crate) certificate_ends_at: i64,
}

/// Why an edge is not admitted or not renewed, with words for whoever reads the edge's status.
pub(crate) type Refused = (Refusal, String);

const EDGE: &str =
    "SELECT id, name, key, admitted_at, certificate_ends_at, revoked_at, last_seen_at FROM edges";

fn edge(row: &Row<'_>) -> rusqlite::Result<EdgeRow> {
    Ok(EdgeRow {
        id: row.get(0)?,
        name: row.get(1)?,
        key: Fingerprint::from_bytes(row.get(2)?),
        admitted_at: row.get(3)?,
        certificate_ends_at: row.get(4)?,
        revoked_at: row.get(5)?,
        last_seen_at: row.get(6)?,
    })
}

/// Reads all edges, by name.
pub(crate) fn all(connection: &Connection) -> Result<Vec<EdgeRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{EDGE} ORDER BY name"))?;
    let rows = statement.query_map([], edge)?;
    rows.map(|row| row.map_err(StoreError::from)).collect()
}

/// Takes a set of tokens in the place of the present one. A token that stays keeps the key that it is bound to.
pub(crate) fn set_tokens(context: &mut Context<'_>, tokens: &[TokenRow]) -> Result<(), StoreError> {
    let connection = context.connection;
    let mut statement = connection.prepare_cached("SELECT hash FROM join_tokens")?;
    let known: Vec<[u8; 32]> = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for hash in known {
        if !tokens.iter().any(|token| *token.hash.as_bytes() == hash) {
            connection.execute("DELETE FROM join_tokens WHERE hash = ?1", [hash])?;
        }
    }
    for TokenRow { hash, edge, ends_at } in tokens {
        connection.execute(
            "INSERT INTO join_tokens (hash, edge, ends_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (hash) DO UPDATE SET edge = excluded.edge, ends_at = excluded.ends_at",
            params![hash.as_bytes(), edge, ends_at],
        )?;
    }
    Ok(())
}

/// Admits an edge and binds the token to its key. A repeat with the same key succeeds, since the reply may have been
/// lost; a token that no key used yet admits an edge that was revoked, or one that lost its key.
pub(crate) fn admit(
    context: &mut Context<'_>,
    applicant: &Applicant,
    now: i64,
) -> Result<Result<EdgeRow, Refused>, StoreError> {
    let Applicant {
        token,
        edge: name,
        key,
        certificate_ends_at,
    } = applicant;
    let connection = context.connection;
    let found = connection
        .query_row(
            "SELECT edge, ends_at, key FROM join_tokens WHERE hash = ?1",
            [token.as_bytes()],
            |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, Option<i64>>(1)?,
                    row.get::<_, Option<[u8; 32]>>(2)?,
                ))
            },
        )
        .optional()?;
    let refused = |refusal, words: String| Ok(Err((refusal, words)));
    let Some((for_edge, ends_at, bound_to)) = found else {
        return refused(
            Refusal::TokenUnknown,
            "the join token is not known here".to_owned(),
        );
    };
    if for_edge != *name {
        return refused(
            Refusal::TokenForAnotherEdge,
            format!("the join token is not for the edge {name:?}"),
        );
    }
    if ends_at.is_some_and(|ends_at| ends_at <= now) {
        return refused(Refusal::TokenExpired, "the join token has expired".to_owned());
    }
    if bound_to.is_some_and(|bound_to| bound_to != *key.as_bytes()) {
        let words = "the join token has admitted another key; a new token admits a new one";
        return refused(Refusal::TokenUsed, words.to_owned());
    }
    let revoked = connection
        .query_row(
            "SELECT 1 FROM edges WHERE name = ?1 AND revoked_at IS NOT NULL",
            [name],
            |_| Ok(()),
        )
        .optional()?;
    if revoked.is_some() && bound_to.is_some() {
        return refused(
            Refusal::EdgeRevoked,
            "the edge was revoked; a new join token admits it again".to_owned(),
        );
    }
    connection.execute(
        "UPDATE join_tokens SET key = ?2, used_at = coalesce(used_at, ?3) WHERE hash = ?1",
        params![token.as_bytes(), key.as_bytes(), now],
    )?;
    connection.execute(
        "INSERT INTO edges (name, key, admitted_at, certificate_ends_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO UPDATE SET key = excluded.key, admitted_at = excluded.admitted_at,
             certificate_ends_at = excluded.certificate_ends_at, revoked_at = NULL",
        params![name, key.as_bytes(), now, certificate_ends_at],
    )?;
    Ok(Ok(connection.query_row(
        &format!("{EDGE} WHERE name = ?1"),
        [name],
        edge,
    )?))
}

/// Sets the end of an edge's certificate, unless the edge was revoked or has another key by now.
pub(crate) fn renew(
    context: &mut Context<'_>,
    edge: &EdgeRow,
    certificate_ends_at: i64,
) -> Result<bool, StoreError> {
    let renewed = context.connection.execute(
        "UPDATE edges SET certificate_ends_at = ?3 WHERE id = ?1 AND key = ?2 AND revoked_at IS NULL",
        params![edge.id, edge.key.as_bytes(), certificate_ends_at],
    )?;
    Ok(renewed == 1)
}

/// Revokes an edge; `false` when there is none of that name.
pub(crate) fn revoke(context: &mut Context<'_>, edge: &str, now: i64) -> Result<bool, StoreError> {
    let revoked = context.connection.execute(
        "UPDATE edges SET revoked_at = coalesce(revoked_at, ?2) WHERE name = ?1",
        params![edge, now],
    )?;
    Ok(revoked == 1)
}

/// Notes when an edge was connected last.
pub(crate) fn saw(context: &mut Context<'_>, edge: i64, now: i64) -> Result<(), StoreError> {
    context
        .connection
        .prepare_cached("UPDATE edges SET last_seen_at = ?2 WHERE id = ?1")?
        .execute([edge, now])?;
    Ok(())
}

/// Place of a process in the order in which an edge's processes first connected. Only the newest hundred are
/// remembered: an older one that comes back counts as new.
pub(crate) fn boot_ordinal(context: &mut Context<'_>, edge: i64, boot: &[u8]) -> Result<i64, StoreError> {
    const REMEMBERED: i64 = 100;
    let connection = context.connection;
    let known = connection
        .query_row(
            "SELECT ordinal FROM boots WHERE edge = ?1 AND boot = ?2",
            params![edge, boot],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(ordinal) = known {
        return Ok(ordinal);
    }
    let newest: i64 = connection.query_row(
        "SELECT coalesce(max(ordinal), 0) FROM boots WHERE edge = ?1",
        [edge],
        |row| row.get(0),
    )?;
    let ordinal = newest + 1;
    connection.execute(
        "INSERT INTO boots (edge, boot, ordinal) VALUES (?1, ?2, ?3)",
        params![edge, boot, ordinal],
    )?;
    connection.execute(
        "DELETE FROM boots WHERE edge = ?1 AND ordinal <= ?2",
        params![edge, ordinal - REMEMBERED],
    )?;
    Ok(ordinal)
}
