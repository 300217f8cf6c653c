-- Times are nanoseconds since 1970 in UTC. Bodies are protobuf messages as
-- blob.go writes them; what SQL has to find stands in columns of its own.

-- The inventory. device_id is NULL until the asset has enrolled.
CREATE TABLE devices (
    asset_number TEXT PRIMARY KEY,
    device_id    TEXT UNIQUE,
    body         BLOB NOT NULL
) STRICT;

-- A VPN certificate belongs to one asset at most.
CREATE TABLE vpn_certificates (
    sha256       BLOB PRIMARY KEY,
    asset_number TEXT NOT NULL REFERENCES devices (asset_number)
) STRICT;
CREATE INDEX vpn_certificates_by_asset ON vpn_certificates (asset_number);

-- The key that a device may use now.
CREATE TABLE credentials (
    device_id   TEXT PRIMARY KEY REFERENCES devices (device_id),
    spki_sha256 BLOB NOT NULL,
    serial      TEXT NOT NULL,
    not_after   INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
    hash         BLOB PRIMARY KEY,
    asset_number TEXT NOT NULL REFERENCES devices (asset_number),
    expires_at   INTEGER NOT NULL,
    used_at      INTEGER
) STRICT;

-- The newest report of each device. fingerprint is of all that makes a change
-- (reports.go).
CREATE TABLE reports (
    device_id   TEXT PRIMARY KEY REFERENCES devices (device_id),
    fingerprint BLOB NOT NULL,
    evidence    BLOB NOT NULL,
    result      BLOB NOT NULL
) STRICT;

-- Changes only. Rows outlive the device they tell of.
CREATE TABLE history (
    id        INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL,
    at        INTEGER NOT NULL,
    result    BLOB NOT NULL
) STRICT;
CREATE INDEX history_by_device ON history (device_id, id);
CREATE INDEX history_by_time ON history (at);

-- What a refusal code stands for; subject is the device or the certificate.
CREATE TABLE refusals (
    code    TEXT NOT NULL,
    subject TEXT NOT NULL,
    at      INTEGER NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (code, subject)
) STRICT;
CREATE INDEX refusals_by_time ON refusals (at);

CREATE TABLE policies (
    version INTEGER PRIMARY KEY,
    body    BLOB NOT NULL,
    yaml    BLOB NOT NULL
) STRICT;

CREATE TABLE audit (
    sequence     INTEGER PRIMARY KEY,
    at           INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    actor        TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    asset_number TEXT NOT NULL,
    details      TEXT NOT NULL, -- JSON object
    previous     BLOB NOT NULL,
    hash         BLOB NOT NULL
) STRICT;
CREATE INDEX audit_by_device ON audit (device_id, sequence);
CREATE INDEX audit_by_asset ON audit (asset_number, sequence);

-- The end of the audit log, apart from it, so that a cut off end is found. One
-- row once there is a record.
CREATE TABLE audit_head (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    sequence INTEGER NOT NULL,
    hash     BLOB NOT NULL
) STRICT;

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
