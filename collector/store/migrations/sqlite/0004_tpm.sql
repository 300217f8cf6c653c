-- An endorsement key belongs to one asset at most, also after that is retired.
CREATE TABLE endorsement_keys (
    sha256       BLOB PRIMARY KEY,
    asset_number TEXT NOT NULL REFERENCES devices (asset_number)
) STRICT;
CREATE INDEX endorsement_keys_by_asset ON endorsement_keys (asset_number);

-- What is known of each device's TPM. Clocks are encoded by tpms.go; previous_key
-- is the attestation key before a renewal, NULL when there is none; boot_loaders
-- are SHA-256 digests, one after the other.
CREATE TABLE tpms (
    device_id          TEXT PRIMARY KEY REFERENCES devices (device_id),
    endorsement_key    BLOB NOT NULL,
    attestation_key    BLOB NOT NULL,
    since              INTEGER NOT NULL,
    clock              BLOB NOT NULL,
    previous_key       BLOB,
    previous_clock     BLOB,
    virtual            INTEGER NOT NULL,
    attestation        BLOB,
    boot_loaders       BLOB NOT NULL,
    failure            TEXT NOT NULL
) STRICT;

-- PCR values that were learned, with what was decided about them.
CREATE TABLE boot_references (
    id     INTEGER PRIMARY KEY,
    vendor TEXT NOT NULL,
    model  TEXT NOT NULL,
    pcr    INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    body   BLOB NOT NULL,
    UNIQUE (vendor, model, pcr, sha256)
) STRICT;

-- Orders that wait for a second operator.
CREATE TABLE proposals (
    id           TEXT PRIMARY KEY,
    asset_number TEXT NOT NULL REFERENCES devices (asset_number),
    body         BLOB NOT NULL
) STRICT;

-- Certificates that vouch for TPMs, as operators have uploaded them.
CREATE TABLE endorsement_authorities (
    id    INTEGER PRIMARY KEY,
    at    INTEGER NOT NULL,
    actor TEXT NOT NULL,
    pem   BLOB NOT NULL
) STRICT;

-- With the keys of a device its tokens end.
CREATE INDEX tokens_by_asset ON tokens (asset_number);
