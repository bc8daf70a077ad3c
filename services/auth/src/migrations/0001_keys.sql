-- One row per key, tombstones included. No secret: `mac` is HMAC-SHA-256(pepper, SHA-256(key)).
CREATE TABLE keys (
    kid              TEXT PRIMARY KEY NOT NULL,
    mac              BLOB NOT NULL,
    pepper_version   INTEGER NOT NULL,
    tenant           TEXT NOT NULL,
    name             TEXT NOT NULL,
    models           TEXT NOT NULL, -- JSON array of globs
    scopes           TEXT NOT NULL, -- JSON array
    priority_ceiling TEXT NOT NULL,
    per_minute       INTEGER,       -- both or neither
    burst            INTEGER,
    state            TEXT NOT NULL CHECK (state IN ('active', 'disabled', 'deleted')),
    created_at_ms    INTEGER NOT NULL,
    changed_at_ms    INTEGER NOT NULL,
    expires_at_ms    INTEGER,
    policy_version   INTEGER NOT NULL,
    CHECK ((per_minute IS NULL) = (burst IS NULL))
) STRICT, WITHOUT ROWID;

-- Pages of one tenant's keys.
CREATE INDEX keys_by_tenant ON keys (tenant, kid);

-- Tombstones whose time is over.
CREATE INDEX keys_deleted ON keys (changed_at_ms) WHERE state = 'deleted';
