-- Times are nanoseconds since 1970. Numbers of 64 bits without sign (epochs of an edge's store) are kept as the signed
-- number of the same bits.

CREATE TABLE edges (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- SHA-256 of the public key that it was admitted with.
    key BLOB NOT NULL,
    admitted_at INTEGER NOT NULL,
    certificate_ends_at INTEGER NOT NULL,
    revoked_at INTEGER,
    last_seen_at INTEGER
) STRICT;

CREATE TABLE join_tokens (
    -- SHA-256 of the token.
    hash BLOB PRIMARY KEY,
    edge TEXT NOT NULL,
    ends_at INTEGER,
    -- The key that the token admitted, and when.
    key BLOB,
    used_at INTEGER
) STRICT, WITHOUT ROWID;

-- Processes of an edge, in the order in which they first connected.
CREATE TABLE boots (
    edge INTEGER NOT NULL,
    boot BLOB NOT NULL,
    ordinal INTEGER NOT NULL,
    PRIMARY KEY (edge, boot)
) STRICT, WITHOUT ROWID;

CREATE TABLE paths (
    id INTEGER PRIMARY KEY,
    edge INTEGER NOT NULL,
    name TEXT NOT NULL,
    -- Who delivered last: the opening of the path, and the process that did it.
    epoch INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    -- Outputs kept, recognised as repeats, and refused for good.
    committed INTEGER NOT NULL DEFAULT 0,
    repeated INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    last_committed_at INTEGER,
    UNIQUE (edge, name)
) STRICT;

-- Which entries are done, by which repeats are recognised. Intervals neither overlap nor touch.
CREATE TABLE intervals (
    path INTEGER NOT NULL,
    store_epoch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (path, store_epoch, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE assets (
    id INTEGER PRIMARY KEY,
    edge INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    -- JSON object of the edge's registry.
    description TEXT,
    first_seen_at INTEGER NOT NULL,
    last_seen_at INTEGER,
    UNIQUE (namespace, name, edge)
) STRICT;

-- What has a history: a data point, an event, a stream, or a topic that belongs to no asset.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    edge INTEGER NOT NULL,
    -- 0 when it belongs to no asset.
    asset INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    member TEXT NOT NULL,
    point TEXT NOT NULL,
    UNIQUE (edge, asset, kind, member, point)
) STRICT;

CREATE INDEX series_by_asset ON series (asset);

CREATE TABLE last_values (
    series INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    receipt INTEGER NOT NULL,
    -- A number, a text or nothing as itself; everything else as a blob of JSON.
    value ANY,
    status INTEGER NOT NULL,
    received_at INTEGER NOT NULL
) STRICT;

CREATE TABLE history (
    series INTEGER NOT NULL,
    time INTEGER NOT NULL,
    -- Rising with every output kept: two values of one time both stay.
    receipt INTEGER NOT NULL,
    value ANY,
    status INTEGER NOT NULL,
    PRIMARY KEY (series, time, receipt)
) STRICT, WITHOUT ROWID;

-- What is no JSON: pictures. The value in the history describes it.
CREATE TABLE payloads (
    receipt INTEGER PRIMARY KEY,
    content_type TEXT,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE audit (
    id TEXT PRIMARY KEY,
    begun_at INTEGER NOT NULL,
    ended_at INTEGER,
    actor TEXT NOT NULL,
    edge TEXT,
    namespace TEXT NOT NULL,
    asset TEXT NOT NULL,
    action_group TEXT NOT NULL,
    action TEXT NOT NULL,
    input TEXT NOT NULL,
    idempotency_key TEXT,
    deadline INTEGER NOT NULL,
    -- `ok`, or the code of the error; nothing while it runs.
    outcome TEXT,
    output TEXT,
    message TEXT,
    device_status TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX audit_by_time ON audit (begun_at, id);
CREATE INDEX audit_by_key ON audit (namespace, asset, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX audit_running ON audit (id) WHERE outcome IS NULL;

CREATE TABLE numbers (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
