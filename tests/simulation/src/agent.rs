//! A simulated host's agent: the real executor and service, a driver for each component, and a ledger that outlives it.
//!
//! Everything that reaches the agent, and everything that it answers, passes somebody who takes notes ([`Watched`]).

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use rollback_agent::executor::{Executor, Limits, Parts};
use rollback_agent::ledger::memory::Memory;
use rollback_agent::server::{Identity, Service, service};
use rollback_engine::ids::Target;
use rollback_proto::v1;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use v1::agent_client::AgentClient;
use v1::agent_server::{Agent, AgentServer};

use crate::driver::Simulated;
use crate::network;
use crate::recorder::{Deed, Key, Seen};
use crate::seed::Broken;
use crate::world::World;

/// The host's software, from its start to its crash.
pub async fn run(world: Arc<World>, host: String) -> turmoil::Result {
    let ledger = world.ledger(&host).open();
    let identity = Identity {
        name: host.clone(),
        ledger_generation: ledger.generation().to_owned(),
        labels: std::collections::BTreeMap::new(),
    };
    let components = world.seed.fleet.hosts.get(&host).into_iter().flatten();
    let drivers = components.map(|component| {
        let driver = Simulated::new(world.ground.clone(), component.clone());
        (component.target.component.0.clone(), Arc::new(driver) as _)
    });
    let executor = Executor::start(Parts {
        host: host.clone(),
        components: drivers.collect(),
        vault: Arc::clone(&world.vault),
        ledger,
        limits: Limits::default(),
    });
    let watched = Watched {
        agent: AgentClient::new(service(identity, executor)),
        ledger: world.ledger(&host),
        host,
        world,
    };
    Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(10)))
        .add_service(AgentServer::new(watched))
        .serve_with_incoming(network::listen().await?)
        .await?;
    Ok(())
}

/// Stands between the network and the agent. The agent is called in the same process, so nothing is lost between them.
struct Watched {
    agent: AgentClient<AgentServer<Service>>,
    ledger: Memory,
    host: String,
    world: Arc<World>,
}

impl Watched {
    /// The agent has answered this leader as its own. `knew`: the newest epoch that it had answered so when the question
    /// arrived.
    fn obeyed(&self, epoch: u64, knew: u64) {
        let host = self.host.clone();
        if epoch < knew {
            let what = format!("{host} obeyed a leader of epoch {epoch}, and had obeyed epoch {knew} before");
            self.world.recorder.note(Seen::Wrong { what });
        }
        self.world.recorder.note(Seen::Obeyed { host, epoch });
    }

    fn asked(&self, request: &v1::ExecuteRequest) {
        let key = request.key.clone().unwrap_or_default();
        self.world.recorder.note(Seen::Asked {
            host: self.host.clone(),
            epoch: request.epoch,
            leader: request.leader_id.clone(),
            deed: Deed {
                rollback: key.rollback_id.clone(),
                target: Target::new(self.host.as_str(), request.component.as_str()),
                action: request.action(),
                undo: request.undo,
                backend: Some(request.backend.clone()).filter(|backend| !backend.is_empty()),
            },
            key: Key {
                rollback: key.rollback_id,
                step: key.step_id,
                attempt: key.attempt,
            },
        });
    }

    /// With a safeguard taken away, every leader is made out to be the one that the agent obeys.
    fn rewrite(&self, request: &mut v1::ExecuteRequest) {
        if self.world.broken == Some(Broken::Obedient)
            && let Some(fence) = self.ledger.fence()
            && fence.epoch >= request.epoch
        {
            (request.epoch, request.leader_id) = (fence.epoch, fence.leader);
        }
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::ExecuteEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Watched {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        self.agent.clone().describe(request).await
    }

    async fn observe(&self, request: Request<v1::ObserveRequest>) -> Result<Response<v1::ObserveResponse>, Status> {
        self.agent.clone().observe(request).await
    }

    async fn retain(&self, request: Request<v1::RetainRequest>) -> Result<Response<v1::RetainResponse>, Status> {
        self.agent.clone().retain(request).await
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Result<Response<v1::ResolveResponse>, Status> {
        self.agent.clone().resolve(request).await
    }

    async fn forget(&self, request: Request<v1::ForgetRequest>) -> Result<Response<v1::ForgetResponse>, Status> {
        self.agent.clone().forget(request).await
    }

    async fn recall(&self, request: Request<v1::RecallRequest>) -> Result<Response<v1::RecallResponse>, Status> {
        self.world.arrives(&request.get_ref().leader_id).await;
        let (epoch, knew) = (request.get_ref().epoch, self.world.recorder.obeyed(&self.host));
        let answer = self.agent.clone().recall(request).await?;
        self.obeyed(epoch, knew);
        Ok(answer)
    }

    type ExecuteStream = Events;

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<Events>, Status> {
        let mut request = request.into_inner();
        self.world.arrives(&request.leader_id).await;
        self.asked(&request);
        let (epoch, knew) = (request.epoch, self.world.recorder.obeyed(&self.host));
        if self.world.broken == Some(Broken::Lying) {
            return Ok(Response::new(Box::pin(futures::stream::iter([Ok(done(&request))]))));
        }
        self.rewrite(&mut request);
        let events = self.agent.clone().execute(request).await?.into_inner();
        self.obeyed(epoch, knew);
        Ok(Response::new(events.boxed()))
    }
}

/// What an agent says that has done what it was asked for.
fn done(request: &v1::ExecuteRequest) -> v1::ExecuteEvent {
    let outcome = v1::Outcome {
        status: v1::outcome::Status::Succeeded.into(),
        observed: request.to.clone(),
        ..v1::Outcome::default()
    };
    v1::ExecuteEvent {
        event: Some(v1::execute_event::Event::Outcome(outcome)),
    }
}
