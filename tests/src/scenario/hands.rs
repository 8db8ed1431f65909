//! Stories of the operator's hands: a plan that is looked at first, a rollback that is stopped, sent back, tried again or
//! shared with a colleague, hosts that come back, and releases that must not.

mod abort_undo;
mod disjoint_scopes;
mod emergency;
mod ground;
mod hold_blocks_redeploy;
mod host_away_converges;
mod pause_resume;
mod plan_stale;
mod readiness;
mod release_preflight;
mod retry_failed_hosts;
mod skip_a_host;
mod two_person_consent;
mod undo_finished;

use futures::FutureExt;

use super::Scenario;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "plan-stale",
        about: "a plan in a file starts exactly as it was looked at, or not at all: changed, or made for a fleet that moved",
        tell: |o| plan_stale::tell(o).boxed_local(),
    },
    Scenario {
        name: "pause-resume",
        about: "paused between two hosts, through a kill -9 of the coordinator, and gone on with by somebody else",
        tell: |o| pause_resume::restarted(o).boxed_local(),
    },
    Scenario {
        name: "pause-failover",
        about: "the same with two coordinators: the one that leads is killed, and the other one leads what stands still",
        tell: |o| pause_resume::taken_over(o).boxed_local(),
    },
    Scenario {
        name: "abort-undo",
        about: "aborted in the middle: everything back with --undo, left as it is with --hold, and nothing stays locked",
        tell: |o| abort_undo::tell(o).boxed_local(),
    },
    Scenario {
        name: "retry-failed-hosts",
        about: "one of three hosts fails and is mended: it alone is tried again, and the rollback is verified",
        tell: |o| retry_failed_hosts::tell(o).boxed_local(),
    },
    Scenario {
        name: "skip-a-host",
        about: "one of three hosts fails and is left out with a reason: partial, and a second rollback reaches that host alone",
        tell: |o| skip_a_host::tell(o).boxed_local(),
    },
    Scenario {
        name: "host-away-converges",
        about: "a host is away during a rollback: drift when it is back, and `fleet converge`, or nobody, brings it there",
        tell: |o| host_away_converges::tell(o).boxed_local(),
    },
    Scenario {
        name: "disjoint-scopes",
        about: "two rollbacks of different hosts run at once; whoever wants a host of theirs is told who has it since when",
        tell: |o| disjoint_scopes::tell(o).boxed_local(),
    },
    Scenario {
        name: "two-person-consent",
        about: "nothing moves until another operator approves of this very plan; nobody does in time: nothing was touched",
        tell: |o| two_person_consent::tell(o).boxed_local(),
    },
    Scenario {
        name: "hold-blocks-redeploy",
        about: "the release that the fleet was taken back from cannot be recorded again, nor pass the gate, until unheld",
        tell: |o| hold_blocks_redeploy::tell(o).boxed_local(),
    },
    Scenario {
        name: "readiness-finds-pruned-image",
        about: "somebody prunes the image of v2.9.0: readiness and its metric say so before anybody has to roll back",
        tell: |o| readiness::pruned_image(o).boxed_local(),
    },
    Scenario {
        name: "readiness-finds-lost-release",
        about: "a host loses v2.9.0 and its copy in the vault: readiness and its metric name it, and restart nothing",
        tell: |o| readiness::lost_release(o).boxed_local(),
    },
    Scenario {
        name: "emergency",
        about: "a host is gone: default waits for it, emergency goes without it, and backs the database up all the same",
        tell: |o| emergency::tell(o).boxed_local(),
    },
    Scenario {
        name: "undo-finished",
        about: "a verified rollback turns out to be the mistake: v3.0.0 is back as it was, as a rollback of its own",
        tell: |o| undo_finished::tell(o).boxed_local(),
    },
    Scenario {
        name: "release-preflight",
        about: "the checklist before a deployment: all is well, and then each thing that is not is named",
        tell: |o| release_preflight::tell(o).boxed_local(),
    },
];
