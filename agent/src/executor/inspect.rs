//! Looking at components, and pinning what is seen.

use std::sync::Arc;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tracing::Instrument;

use super::drive::guarded;
use super::{Executor, Inner, order, stopping};
use crate::convert;
use crate::driver::{Driver, Observation, Retained, Revision};

impl Executor {
    /// Revision and health of some components, all of them when none is named, side by side. A component that cannot
    /// be observed, or is not there, carries its problem; the others are not delayed by more than the limit.
    pub async fn observe(&self, names: Vec<String>) -> Result<Vec<v1::ComponentState>, Problem> {
        for name in &names {
            check_name("component", name)?;
        }
        let names = if names.is_empty() {
            self.0.components.keys().cloned().collect()
        } else {
            names
        };
        if names.len() > self.0.components.len() {
            return Err(Problem::new(
                Code::BadRequest,
                format!(
                    "{} components were asked for, this agent has {}",
                    names.len(),
                    self.0.components.len()
                ),
            ));
        }
        let states = names.iter().map(|name| async {
            let observed = match self.0.components.get(name) {
                Some(component) => observe_one(name, component.driver.as_ref(), self.0.limits.observe).await,
                None => Err(unknown(name)),
            };
            convert::component_state(name, observed)
        });
        Ok(futures::future::join_all(states).await)
    }

    /// Pins what is live now. Durable when it returns; runs to its end when the caller goes away.
    pub async fn retain(&self, name: String, release: String) -> Result<v1::RetainResponse, Problem> {
        self.pin(name, release, What::Live).await.map(Into::into)
    }

    /// Finds what goes by a release's name, and pins it. As durable as `retain`.
    pub async fn resolve(&self, name: String, release: String) -> Result<v1::ResolveResponse, Problem> {
        self.pin(name, release, What::Named).await.map(Into::into)
    }

    /// Nobody comes back to this revision any more. Refuses nothing for being repeated; runs to its end when the caller
    /// goes away.
    pub async fn forget(&self, request: v1::ForgetRequest) -> Result<v1::ForgetResponse, Problem> {
        check_name("component", &request.component)?;
        check_name("release", &request.release)?;
        if self.0.tasks.is_closed() {
            return Err(stopping());
        }
        let work = forget_one(Arc::clone(&self.0), request).in_current_span();
        let summary = self.0.tasks.spawn(work).await.map_err(|_| stopping())??;
        Ok(v1::ForgetResponse { summary })
    }

    async fn pin(&self, name: String, release: String, what: What) -> Result<Retained, Problem> {
        check_name("component", &name)?;
        check_name("release", &release)?;
        if self.0.tasks.is_closed() {
            return Err(stopping());
        }
        let work = pin_one(Arc::clone(&self.0), name, release, what).in_current_span();
        self.0.tasks.spawn(work).await.map_err(|_| stopping())?
    }
}

fn unknown(name: &str) -> Problem {
    Problem::new(Code::UnknownComponent, format!("this agent has no component {name}"))
}

/// One component, bounded; also for the command line, which has no executor.
pub async fn observe_one(name: &str, driver: &dyn Driver, limit: std::time::Duration) -> Result<Observation, Problem> {
    match tokio::time::timeout(limit, guarded(driver.observe())).await {
        Ok(Ok(observed)) => observed,
        Ok(Err(panic)) => Err(defect(name, &panic)),
        Err(_) => Err(Problem::new(
            Code::StepTimeout,
            format!(
                "component {name} could not be observed within {} s",
                limit.as_secs_f32()
            ),
        )
        .remedy("look at the component on the host: what it asks does not answer")),
    }
}

/// Which revision is pinned.
#[derive(Clone, Copy, Debug)]
enum What {
    Live,
    Named,
}

async fn pin_one(inner: Arc<Inner>, name: String, release: String, what: What) -> Result<Retained, Problem> {
    let component = inner.components.get(&name).ok_or_else(|| unknown(&name))?;
    let turn = Arc::clone(&component.turn);
    let Ok(Ok(_turn)) = tokio::time::timeout(inner.limits.retain_turn, turn.acquire_owned()).await else {
        return Err(busy(&name));
    };
    let work = async {
        match what {
            What::Live => component.driver.retain(&release).await,
            What::Named => component.driver.resolve(&release).await,
        }
    };
    match tokio::time::timeout(inner.limits.retain, guarded(work)).await {
        Ok(Ok(pinned)) => pinned,
        Ok(Err(panic)) => Err(defect(&name, &panic)),
        Err(_) => Err(Problem::new(
            Code::StepTimeout,
            format!(
                "{release} of component {name} could not be pinned within {} s",
                inner.limits.retain.as_secs()
            ),
        )),
    }
}

/// What is live stays, and what cannot be seen is taken for live. No step can change that meanwhile: it is this
/// component's turn.
async fn forget_one(inner: Arc<Inner>, request: v1::ForgetRequest) -> Result<String, Problem> {
    let name = request.component;
    let component = inner.components.get(&name).ok_or_else(|| unknown(&name))?;
    let nothing = || Problem::new(Code::BadRequest, "no revision is named that could be forgotten");
    let gone = order::revision("revision", request.revision.ok_or_else(nothing)?)?;
    // The vault has notes beside the pins of revisions; no name of one looks like this.
    let (_, hash) = gone.digest.split_once(':').ok_or_else(nothing)?;
    if hash.is_empty() || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(nothing());
    }
    let kept: Vec<Revision> = request.kept.into_iter().map(Revision::from).collect();
    if kept.contains(&gone) {
        return Ok("another release needs it".to_owned());
    }
    let turn = Arc::clone(&component.turn);
    let Ok(Ok(_turn)) = tokio::time::timeout(inner.limits.retain_turn, turn.acquire_owned()).await else {
        return Err(busy(&name));
    };
    let live = observe_one(&name, component.driver.as_ref(), inner.limits.observe).await?;
    if live.revision == gone {
        return Ok("it is what runs now".to_owned());
    }
    let work = guarded(component.driver.forget(&gone, &kept));
    match tokio::time::timeout(inner.limits.retain, work).await {
        Ok(Ok(forgotten)) => {
            let summary = forgotten?;
            tracing::info!(
                component = name,
                release = request.release,
                summary,
                "a release was forgotten"
            );
            Ok(summary)
        }
        Ok(Err(panic)) => Err(defect(&name, &panic)),
        Err(_) => Err(Problem::new(
            Code::StepTimeout,
            format!(
                "{} of component {name} could not be forgotten within {} s",
                request.release,
                inner.limits.retain.as_secs()
            ),
        )),
    }
}

fn busy(name: &str) -> Problem {
    Problem::new(Code::ComponentBusy, format!("component {name} is busy with a step"))
}

fn defect(name: &str, panic: &str) -> Problem {
    tracing::error!(component = name, panic, "the driver panicked");
    Problem::new(
        Code::Internal,
        format!("component {name}: a defect of the driver: {panic}"),
    )
}
