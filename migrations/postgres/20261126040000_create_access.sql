-- Comments: sqlite/20261126040000_create_access.sql
CREATE TABLE account (
    name TEXT COLLATE "C" PRIMARY KEY,
    password_hash TEXT COLLATE "C" NOT NULL,
    is_admin BIGINT NOT NULL,
    is_disabled BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE robot_key (
    name TEXT COLLATE "C" PRIMARY KEY,
    prefix TEXT COLLATE "C" NOT NULL,
    secret_hash BYTEA NOT NULL CHECK (length(secret_hash) = 32),
    owner TEXT COLLATE "C" REFERENCES account (name) ON DELETE CASCADE,
    namespace TEXT COLLATE "C",
    is_login BIGINT NOT NULL,
    scopes TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT
);

CREATE INDEX robot_key_by_owner ON robot_key (owner);

CREATE TABLE access_grant (
    subject TEXT COLLATE "C" NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    is_deny BIGINT NOT NULL,
    rights BIGINT NOT NULL,
    granted_by TEXT COLLATE "C" NOT NULL,
    granted_at BIGINT NOT NULL,
    PRIMARY KEY (subject, target, is_deny)
);

CREATE TABLE signing_key (
    id TEXT COLLATE "C" PRIMARY KEY,
    secret BYTEA NOT NULL CHECK (length(secret) = 32),
    created_at BIGINT NOT NULL
);

CREATE TABLE access_version (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL
);
INSERT INTO access_version (id, version) VALUES (1, 0);

CREATE TABLE audit_entry (
    id TEXT COLLATE "C" PRIMARY KEY,
    at BIGINT NOT NULL,
    who TEXT COLLATE "C" NOT NULL,
    action TEXT COLLATE "C" NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    detail TEXT COLLATE "C",
    address TEXT COLLATE "C",
    request TEXT COLLATE "C"
);
