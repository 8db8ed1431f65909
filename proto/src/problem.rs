//! Errors that an operator can see: a stable code, what happened, and what to do next. They cross the wire in the
//! details of a gRPC status and inside messages, and are listed in `docs/errors.md` (a test compares the two).
//!
//! Numbers are never reused. Hundreds by subject: 00 asking, 01 identity, 02 releases and plans, 03 hosts, 04 steps,
//! 05 files and processes, 06 nginx, 07 databases, 09 the programs themselves.

use std::fmt;

use tonic::metadata::{MetadataMap, MetadataValue};

use crate::v1;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $status:ident, $remedy:literal;)*) => {
        /// A stable error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// `RB0007`: what operators search for.
            pub fn id(self) -> &'static str {
                match self { $(Code::$name => concat!("RB", $number),)* }
            }

            /// What to do next when nothing better is known where the error arose.
            pub fn remedy(self) -> &'static str {
                match self { $(Code::$name => $remedy,)* }
            }

            /// The gRPC status that carries it.
            pub fn status(self) -> tonic::Code {
                match self { $(Code::$name => tonic::Code::$status,)* }
            }

            pub fn from_id(id: &str) -> Option<Self> {
                match id { $(concat!("RB", $number) => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// A name does not pass the allow-list.
    BadName = "0001", InvalidArgument, "use 1 to 128 of A-Z a-z 0-9 . _ + -, not beginning with - or .";
    /// A request lacks something or contradicts itself.
    BadRequest = "0002", InvalidArgument, "correct the request as the message says";
    /// The thing asked for does not exist.
    NotFound = "0003", NotFound, "list what there is: rollbackctl rollback list, release list, agent list";
    /// The caller's role may not do this.
    Forbidden = "0100", PermissionDenied, "use a certificate whose role may do this; rollbackctl doctor shows yours";
    /// No or an unusable certificate.
    Unauthenticated = "0101", Unauthenticated, "give a certificate of this fleet: rollbackctl doctor says what is missing";
    /// A join token is wrong, used or expired.
    BadToken = "0102", PermissionDenied, "make a new one: rollbackctl agent token NAME";
    /// A private key is readable by others, or a certificate file cannot be used.
    BadCredentials = "0103", FailedPrecondition, "fix the file that the message names (keys: chmod 600)";
    /// No release of this name.
    UnknownRelease = "0200", NotFound, "list the recorded ones: rollbackctl release list";
    /// The name is taken by a release with other content.
    ReleaseExists = "0201", AlreadyExists, "choose another name; a recorded release is never overwritten";
    /// No plan can be made.
    PlanRefused = "0202", FailedPrecondition, "mend what the message lists, or ask: rollbackctl fleet status";
    /// Another rollback holds (part of) the scope.
    ScopeHeld = "0203", Aborted, "watch it: rollbackctl rollback watch latest";
    /// `prepare` found blockers; nothing was touched.
    Blocked = "0204", FailedPrecondition, "mend the blockers listed, then run the same command again";
    /// The release could not be recorded because part of the fleet could not be observed or retained.
    RecordIncomplete = "0205", FailedPrecondition, "mend the hosts listed, then record again";
    /// The plan that was agreed to is not the plan of now.
    PlanStale = "0206", FailedPrecondition, "the fleet has moved: look at the new plan, and ask again";
    /// A release could not be imported because part of the fleet has nothing that goes by its name.
    ImportIncomplete = "0207", FailedPrecondition, "put what is missing where the message says, or leave it out: --as-is HOST/COMPONENT, --without HOST/COMPONENT";
    /// The plan loses data, and nobody agreed to that, or not to so much.
    ConsentNeeded = "0208", FailedPrecondition, "look at what would be lost: the same command with `fleet plan`; then agree: fleet rollback --accept-data-loss, =ROWS or =all";
    /// The release is held: it must not be deployed or recorded.
    ReleaseHeld = "0209", FailedPrecondition, "read why; when it is mended: rollbackctl fleet unhold RELEASE --reason TEXT";
    /// An act that does not fit what the rollback is doing.
    ActUnfit = "0210", FailedPrecondition, "look at it: rollbackctl rollback show ID";
    /// Somebody else has to approve, or what is approved is not this plan.
    ApprovalRefused = "0211", PermissionDenied, "another operator approves: rollbackctl rollback approve ID";
    /// Nobody approved in time.
    ApprovalExpired = "0212", DeadlineExceeded, "nothing was touched; ask a second operator to be ready, then start again";
    /// A runbook cannot be used.
    BadRunbook = "0213", InvalidArgument, "mend the lines listed; rollbackctl runbook show default is an example with every key";
    /// No runbook of this name.
    UnknownRunbook = "0214", NotFound, "list what there is: rollbackctl runbook list";
    /// A file with a plan cannot be used.
    BadPlanFile = "0215", InvalidArgument, "make a new one: rollbackctl fleet plan --to RELEASE --out FILE";
    /// The release is needed.
    ReleasePinned = "0216", FailedPrecondition, "the message says what needs it: rollbackctl release list";
    /// What is deployed is not what the deployment expected.
    NotAsExpected = "0217", FailedPrecondition, "look at what runs: rollbackctl fleet status; then deploy or record again";
    /// An operator ended the rollback.
    Aborted = "0218", Aborted, "look at what runs: rollbackctl fleet status";
    /// Where the rollback came from cannot be gone back to by a rollback.
    NoWayBack = "0219", FailedPrecondition, "roll back to a recorded release instead: rollbackctl release list";
    /// Cannot reach a host's agent.
    HostUnreachable = "0300", Unavailable, "look at the host and its rollback-agent; rollbackctl agent list shows when it was last seen";
    /// The peer is not the agent it should be.
    WrongPeer = "0301", PermissionDenied, "enroll the agent again; somebody else answers at its address";
    /// The agent's ledger is not the one that the coordinator knew.
    LedgerLost = "0302", DataLoss, "look at the host by hand before starting another rollback";
    /// A leader with a lower epoch, or another leader of the same epoch.
    StaleLeader = "0303", FailedPrecondition, "nothing: a newer coordinator leads";
    /// The agent has no such component.
    UnknownComponent = "0304", NotFound, "declare the component in the agent's configuration";
    /// An action that this kind of component does not have.
    UnsupportedAction = "0305", Unimplemented, "use a runbook that does not ask for it";
    /// What was observed after a step is not what the step was for.
    WrongRevision = "0400", FailedPrecondition, "look at the component by hand; something else changed it at the same time";
    /// The step did not end in time.
    StepTimeout = "0401", DeadlineExceeded, "look at the host; raise the step's timeout in the runbook if it is only slow";
    /// The agent was stopped inside a step and cannot tell what came of it.
    StepIndeterminate = "0402", Unknown, "look at the component by hand: what runs, and what is on disk";
    /// A step with a known key came with other arguments.
    KeyReused = "0403", FailedPrecondition, "report this: a coordinator must never do so";
    /// A step of the undo failed.
    UndoFailed = "0404", FailedPrecondition, "mend the component by hand, then go on: rollbackctl fleet rollback --to RELEASE";
    /// The component is busy with another step.
    ComponentBusy = "0405", Aborted, "wait for the running step: rollbackctl rollback list";
    /// The health check did not pass in time.
    Unhealthy = "0500", FailedPrecondition, "read the application's log on the host";
    /// A revision is neither on the host nor in the vault.
    RevisionMissing = "0501", FailedPrecondition, "put the release back on the host, or roll back to another one";
    /// Content differs from the digest that was recorded.
    RevisionDamaged = "0502", DataLoss, "put the recorded content back, or roll back to another release";
    /// Not enough room.
    DiskFull = "0503", ResourceExhausted, "free disk space on the host";
    /// A program of the host failed.
    ProgramFailed = "0504", Internal, "read the message; run the program by hand on the host";
    /// Reading or writing a file failed.
    FileFailed = "0505", Internal, "look at the file that the message names: rights, disk, mount";
    /// The process did not stop.
    StillRunning = "0506", FailedPrecondition, "stop the process by hand";
    /// A path is not what it should be (a directory instead of a link, outside its root, …).
    BadLayout = "0507", FailedPrecondition, "bring the path into the layout that docs/components.md describes";
    /// A check that the agent's configuration declares did not pass.
    CheckFailed = "0508", FailedPrecondition, "look at what the check asks";
    /// The container engine does not answer, or refuses.
    EngineFailed = "0509", Unavailable, "look at the engine on the host: docker info; and at the agent's right to its socket";
    /// A container cannot be replaced without losing something, or is not what the configuration says.
    ContainerUnfit = "0510", FailedPrecondition, "change the container as the message says, or replace it by hand once";
    /// A git repository or worktree is not in a state from which a release can be taken.
    GitUnfit = "0511", FailedPrecondition, "look at the repository on the host: the message says what was found";
    /// A tag or another name does not mean any more what it meant when the release was recorded.
    NameMoved = "0512", FailedPrecondition, "find out who moved it; move it back, or record or import the release again";
    /// An archive holds something that is never unpacked: links out of it, devices, absolute names, or far too much.
    ArchiveRefused = "0513", FailedPrecondition, "do not trust the archive; build the release again";
    /// Nothing on the host goes by the release's name.
    Unresolved = "0514", NotFound, "put it where the message says and import again, or: --as-is HOST/COMPONENT, --without HOST/COMPONENT";
    /// A process manager (systemd, pm2) does not do or does not know what it should.
    ManagerFailed = "0515", FailedPrecondition, "ask the process manager by hand on the host, as the message says";
    /// Compose fails, or its project is not what the configuration says.
    ComposeFailed = "0516", FailedPrecondition, "run the command that the message names by hand on the host";
    /// `nginx -t` refuses the configuration.
    NginxConfig = "0600", FailedPrecondition, "mend the configuration that the message quotes";
    /// nginx took the reload but goes on serving the old configuration.
    NginxNotServing = "0601", FailedPrecondition, "read nginx's error log: a port in use or a missing file";
    /// nginx does not run.
    NginxDown = "0602", FailedPrecondition, "start nginx";
    /// The site does not include the managed file.
    NginxInclude = "0603", FailedPrecondition, "add the include line that the message shows to the server block";
    /// Taking this backend out would leave nobody to serve.
    LastBackend = "0604", FailedPrecondition, "bring another backend up first: rollbackctl fleet status";
    /// Cannot connect to the database.
    DatabaseDown = "0700", Unavailable, "look at the database server and the agent's connection settings";
    /// A backup could not be made or does not prove to be whole.
    BackupUnproven = "0701", DataLoss, "nothing was changed; mend what the message names, and try again";
    /// A migration has no way down.
    NoDownMigration = "0702", FailedPrecondition, "write the down migration, or roll back without the database";
    /// The applied migrations are not those that are known.
    MigrationsDiverged = "0703", FailedPrecondition, "bring schema_migrations and the migration files together by hand";
    /// Rehearsing on a copy did not end at the recorded schema.
    RehearsalFailed = "0704", FailedPrecondition, "mend the down migration; the live database was not touched";
    /// A migration failed on the live database and was rolled back.
    MigrationFailed = "0705", Aborted, "the transaction was rolled back; read the message";
    /// Something else holds the database: sessions, a lock, a slot, a prepared transaction, or other work on its copies.
    DatabaseLocked = "0706", Aborted, "end what the message names, or wait until it is done; then try again";
    /// The database is in a state that only a person can judge.
    DatabaseUnclear = "0707", Unknown, "look at the database by hand: the message says what was found";
    /// There is no proven backup of the release's schema.
    NoBackup = "0708", NotFound, "take one in on the host: rollback-agent database adopt COMPONENT DUMP; or list what there is: rollback-agent database list COMPONENT";
    /// A backup could not be restored beside the live database, or what came out is not what it should be.
    RestoreFailed = "0709", FailedPrecondition, "nothing was exchanged, the live database is as it was; read the message";
    /// A restore would lose more rows than was agreed to, or nobody knows how many.
    LossTooGreat = "0710", FailedPrecondition, "look at the figures; agree to more: --accept-data-loss=ROWS, or to any loss: --accept-data-loss=all";
    /// A declared check of the data does not hold.
    IntegrityFailed = "0711", FailedPrecondition, "look at what the check asks, in the database itself";
    /// The project's own migration tool failed, or did something else than its name says.
    MigrationToolFailed = "0712", FailedPrecondition, "run the command that the message names by hand, against a copy";
    /// The only backup that a way back could go by is older than its host allows.
    BackupTooOld = "0713", FailedPrecondition, "make backups of each release while it runs: backup_on_record, or rollback-agent database backup COMPONENT; or allow older ones: backup_max_age";
    /// The coordinator's store refuses or cannot be reached.
    StoreUnavailable = "0900", Unavailable, "look at the coordinator's disk and log";
    /// This coordinator does not lead any more.
    NotLeader = "0901", Unavailable, "ask again; the leader answers";
    /// Agents remember steps that the journal does not: the store has lost what it had confirmed.
    JournalLost = "0903", DataLoss, "look at the hosts by hand, and at how the store lost commits (a failover to an asynchronous replica, an older backup)";
    /// A configuration file is wrong.
    BadConfig = "0902", InvalidArgument, "correct the configuration; deploy/examples/ has every key with its default";
    /// A defect of ours.
    Internal = "0999", Internal, "report this with the daemon's log";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// An error with its code, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Problem {
    pub code: Code,
    /// What happened, with the names that are needed to find it. One line.
    pub message: String,
    /// What to do next.
    pub remedy: String,
    /// For programs: where it goes on. Never needed to understand the message.
    pub hint: Option<Hint>,
}

/// What a refusal tells the program that asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// With `NotLeader`: host:port of the coordinator that leads.
    Leader(String),
    /// With `StaleLeader`: the epoch that the agent obeys.
    Epoch(u64),
}

impl Problem {
    /// With the code's general remedy.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            remedy: code.remedy().to_owned(),
            hint: None,
        }
    }

    /// From an error and its chain of causes. `what` is "verb + object": "open ledger".
    pub fn from_error(code: Code, what: impl fmt::Display, error: &dyn std::error::Error) -> Self {
        let mut message = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(source) = cause {
            let text = source.to_string();
            // Some errors have their cause in their own text already.
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = source.source();
        }
        Self::new(code, message)
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hint = Some(hint);
        self
    }

    /// Reads a problem that a peer sent in a status; statuses that carry none are given the code that fits best.
    pub fn from_status(status: &tonic::Status) -> Self {
        let meta = status.metadata();
        let text = |key: &str| {
            meta.get_bin(key)
                .and_then(|v| v.to_bytes().ok())
                .map(|b| String::from_utf8_lossy(&b).into_owned())
        };
        let code = meta.get(CODE_KEY).and_then(|v| v.to_str().ok()).and_then(Code::from_id);
        // Only statuses that were made here, of a connection that broke, have a source.
        let broken = std::error::Error::source(status)
            .is_some()
            .then_some(Code::HostUnreachable);
        let code = code.or(broken).unwrap_or(match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => Code::HostUnreachable,
            tonic::Code::PermissionDenied => Code::Forbidden,
            tonic::Code::Unauthenticated => Code::Unauthenticated,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::InvalidArgument => Code::BadRequest,
            tonic::Code::Ok
            | tonic::Code::Unknown
            | tonic::Code::AlreadyExists
            | tonic::Code::ResourceExhausted
            | tonic::Code::FailedPrecondition
            | tonic::Code::Aborted
            | tonic::Code::OutOfRange
            | tonic::Code::Unimplemented
            | tonic::Code::Internal
            | tonic::Code::DataLoss => Code::Internal,
        });
        let ascii = |key: &str| meta.get(key).and_then(|v| v.to_str().ok());
        let leader = ascii(LEADER_KEY).map(|endpoint| Hint::Leader(endpoint.to_owned()));
        let epoch = || ascii(EPOCH_KEY).and_then(|epoch| epoch.parse().ok()).map(Hint::Epoch);
        let problem = Self {
            hint: leader.or_else(epoch),
            ..Self::new(code, status.message())
        };
        match text(REMEDY_KEY) {
            Some(remedy) => problem.remedy(remedy),
            None => problem,
        }
    }
}

const CODE_KEY: &str = "rb-code";
const REMEDY_KEY: &str = "rb-remedy-bin";
const LEADER_KEY: &str = "rb-leader";
const EPOCH_KEY: &str = "rb-epoch";

impl From<Problem> for tonic::Status {
    fn from(p: Problem) -> Self {
        let mut meta = MetadataMap::new();
        meta.insert(CODE_KEY, MetadataValue::from_static(p.code.id()));
        meta.insert_bin(REMEDY_KEY, MetadataValue::from_bytes(p.remedy.as_bytes()));
        match p.hint {
            // An endpoint that no header can hold is none that anybody could dial.
            Some(Hint::Leader(endpoint)) => {
                if let Ok(endpoint) = endpoint.parse() {
                    meta.insert(LEADER_KEY, endpoint);
                }
            }
            Some(Hint::Epoch(epoch)) => {
                meta.insert(EPOCH_KEY, epoch.into());
            }
            None => {}
        }
        tonic::Status::with_metadata(p.code.status(), p.message, meta)
    }
}

impl From<Problem> for v1::Problem {
    fn from(p: Problem) -> Self {
        Self {
            code: p.code.id().to_owned(),
            message: p.message,
            remedy: p.remedy,
        }
    }
}

impl From<v1::Problem> for Problem {
    /// A code that this version does not know (a newer peer's) becomes `Internal`, with the code kept in the text.
    fn from(p: v1::Problem) -> Self {
        match Code::from_id(&p.code) {
            Some(code) => Self {
                code,
                message: p.message,
                remedy: p.remedy,
                hint: None,
            },
            None => Self {
                code: Code::Internal,
                message: format!("{}: {}", p.code, p.message),
                remedy: p.remedy,
                hint: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_read_back() {
        let ids: BTreeSet<_> = Code::ALL.iter().map(|c| c.id()).collect();
        assert_eq!(ids.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(Code::from_id(code.id()), Some(*code));
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot talk: {0}")]
        struct Talk(#[source] std::io::Error);
        let missing = || std::io::Error::other("no such file");
        let problem = Problem::from_error(Code::DatabaseDown, "connect", &Talk(missing()));
        assert_eq!(problem.message, "connect: cannot talk: no such file");
        #[derive(Debug, thiserror::Error)]
        #[error("cannot talk")]
        struct Silent(#[source] std::io::Error);
        let problem = Problem::from_error(Code::DatabaseDown, "connect", &Silent(missing()));
        assert_eq!(problem.message, "connect: cannot talk: no such file");
    }

    #[test]
    fn survives_the_trip_through_a_status() {
        let sent = Problem::new(Code::DiskFull, "app-1/api: 3 MB free").remedy("gib Platz frei – jetzt");
        let arrived = |sent: &Problem| Problem::from_status(&tonic::Status::from(sent.clone()));
        assert_eq!(arrived(&sent), sent);
        for hint in [Hint::Leader("coord-2.example:7443".to_owned()), Hint::Epoch(u64::MAX)] {
            let sent = sent.clone().hint(hint);
            assert_eq!(arrived(&sent), sent);
        }
    }
}
