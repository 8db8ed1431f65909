//! The fleet harness: real programs, real servers, real faults, on loopback and in one temporary directory.
//!
//! | room | what is in it |
//! |---|---|
//! | [`control`] | the programs under test, on any hosts: a coordinator or several replicas, an operator, agents |
//! | [`fleet`] | that, and zekka's fixed fleet: PostgreSQL, nginx, the sample application's hosts |
//! | [`coordinator`], [`agent`], [`ctl`] | the three programs under test, as processes |
//! | [`postgres`], [`nginx`], [`zekka`] | the servers that they roll back, and a deployment done by hand |
//! | [`deployed`] | the sample application in every other form: containers, Compose, git and pm2, archives |
//! | [`docker`], [`pm2`] | the engine and the process manager that these forms need, and what they say |
//! | [`ballast`], [`writers`] | a database of a size that counts, and those who go on writing to it |
//! | [`pgbouncer`], [`small_disk`], [`clock`], [`network`] | what goes wrong around the programs: between them and their store, with disks, clocks, packets |
//! | [`journal`] | the journal and the agents' ledgers as they are stored, and whether anything is missing or there twice |
//! | [`store_server`] | the PostgreSQL in which several coordinators keep their journal, and who wrote into it |
//! | [`facts`], [`effects`], [`prober`], [`collector`] | what can be seen without asking the programs under test |
//! | [`figures`] | durations and overhead of a rollback, from its report |
//! | [`scenario`] | stories that are told with all of this; `scenario list` names them |
//!
//! Invariants:
//! - Every process that is started here is known by PID and ended with the [`control::Control`], whatever happens in between.
//! - Nothing waits for time to pass: [`wait::until`] waits for a condition and fails with the condition's name.
//! - Whether a rollback did what it says is judged from [`facts`], not from what the programs answer.

pub mod agent;
pub mod ballast;
pub mod binaries;
pub mod clock;
pub mod collector;
pub mod control;
pub mod coordinator;
pub mod ctl;
pub mod deployed;
pub mod docker;
pub mod effects;
pub mod facts;
pub mod figures;
pub mod fleet;
pub mod journal;
pub mod network;
pub mod nginx;
pub mod pgbouncer;
pub mod pm2;
pub mod postgres;
pub mod prober;
pub mod process;
pub mod scenario;
pub mod small_disk;
pub mod store_server;
pub mod swarm;
pub mod systemd_host;
pub mod wait;
pub mod writers;
pub mod zekka;
