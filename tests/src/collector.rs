//! An OTLP receiver on loopback that keeps every span, and what a whole trace has to look like.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::wait;

/// A span, as far as a trace is judged by it.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of the program that sent it.
    pub service: String,
    pub trace_id: String,
    pub id: String,
    /// Empty: a root.
    pub parent: String,
    pub name: String,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default)]
struct Store(Arc<Mutex<Vec<Span>>>);

/// A running receiver; ends with this value.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    store: Store,
    task: tokio::task::JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .context("listen for spans")?;
        let endpoint = format!("http://{}", listener.local_addr().context("address of the receiver")?);
        let store = Store::default();
        let service = TraceServiceServer::new(store.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move {
            // A failure shows as spans that are missing.
            let _ = serving.await;
        });
        Ok(Self { endpoint, store, task })
    }

    /// `http://host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn spans(&self) -> Vec<Span> {
        self.store.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the trace is whole: see [`check_trace`]. Exporters send in batches, some after the fact.
    pub async fn whole_trace(&self, trace_id: &str, steps: &BTreeSet<String>) -> Result<TraceFigures> {
        let whole = async || check_trace(&self.spans(), trace_id, steps).ok();
        match wait::until("the trace is whole", Duration::from_secs(15), whole).await {
            Ok(figures) => Ok(figures),
            // Says what is missing rather than that time has passed.
            Err(_) => check_trace(&self.spans(), trace_id, steps),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Store {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let attributes = resource
                .resource
                .map(|r| text_attributes(r.attributes))
                .unwrap_or_default();
            let service = attributes.get("service.name").cloned().unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                store.push(Span {
                    service: service.clone(),
                    trace_id: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    name: span.name,
                    attributes: text_attributes(span.attributes),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text_attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: any_value::Value| match value {
        any_value::Value::StringValue(s) => s,
        any_value::Value::IntValue(i) => i.to_string(),
        any_value::Value::BoolValue(b) => b.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |a: KeyValue| Some((a.key, text(a.value?.value?)));
    attributes.into_iter().filter_map(pair).collect()
}

/// What was found in a whole trace.
#[derive(Clone, Debug)]
pub struct TraceFigures {
    pub spans: usize,
    /// `service.name` → number of spans.
    pub services: BTreeMap<String, usize>,
}

/// A trace is whole when it has one root, spans of all three programs, a span for every step that the report lists
/// (`step.id`), and every parent that is named was received.
pub fn check_trace(spans: &[Span], trace_id: &str, steps: &BTreeSet<String>) -> Result<TraceFigures> {
    // A span may be sent twice, by a coordinator and by the one that took over: ids follow from the journal.
    let of_trace = spans.iter().filter(|s| s.trace_id == trace_id);
    let trace: BTreeMap<&str, &Span> = of_trace.map(|s| (s.id.as_str(), s)).collect();
    let trace: Vec<&Span> = trace.into_values().collect();
    ensure!(!trace.is_empty(), "no span of trace {trace_id} was received");
    let roots: Vec<&str> = trace
        .iter()
        .filter(|s| s.parent.is_empty())
        .map(|s| s.name.as_str())
        .collect();
    ensure!(roots.len() == 1, "{} roots instead of one: {roots:?}", roots.len());

    let mut services: BTreeMap<String, usize> = BTreeMap::new();
    for span in &trace {
        *services.entry(span.service.clone()).or_default() += 1;
    }
    for service in ["rollbackctl", "rollback-coordinator", "rollback-agent"] {
        ensure!(
            services.contains_key(service),
            "no span of {service}, only of {:?}",
            services.keys()
        );
    }

    let ids: BTreeSet<&str> = trace.iter().map(|s| s.id.as_str()).collect();
    let orphans: Vec<String> = trace
        .iter()
        .filter(|s| !s.parent.is_empty() && !ids.contains(s.parent.as_str()))
        .map(|s| format!("{} of {}", s.name, s.service))
        .collect();
    ensure!(
        orphans.is_empty(),
        "parents of these spans were not received: {orphans:?}"
    );

    let named: BTreeSet<&String> = trace.iter().filter_map(|s| s.attributes.get("step.id")).collect();
    let missing: Vec<&String> = steps.iter().filter(|id| !named.contains(id)).collect();
    ensure!(
        missing.is_empty(),
        "no span has the step.id of these steps: {missing:?}; there are {named:?}"
    );
    Ok(TraceFigures {
        spans: trace.len(),
        services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(service: &str, id: &str, parent: &str, step: Option<&str>) -> Span {
        Span {
            service: service.to_owned(),
            trace_id: "t".to_owned(),
            id: id.to_owned(),
            parent: parent.to_owned(),
            name: format!("span {id}"),
            attributes: step.map(|s| ("step.id".to_owned(), s.to_owned())).into_iter().collect(),
        }
    }

    fn whole() -> Vec<Span> {
        vec![
            span("rollbackctl", "1", "", None),
            span("rollback-coordinator", "2", "1", Some("7")),
            span("rollback-agent", "3", "2", Some("7")),
        ]
    }

    #[test]
    fn a_whole_trace_passes_and_each_defect_is_found() {
        let steps = BTreeSet::from(["7".to_owned()]);
        check_trace(&whole(), "t", &steps).expect("a whole trace");
        assert!(check_trace(&whole(), "other", &steps).is_err());
        assert!(check_trace(&whole(), "t", &BTreeSet::from(["8".to_owned()])).is_err());
        for gone in 0..3 {
            let mut spans = whole();
            spans.remove(gone);
            assert!(check_trace(&spans, "t", &steps).is_err(), "without span {gone}");
        }
        let mut two_roots = whole();
        two_roots.push(span("rollback-agent", "4", "", None));
        assert!(check_trace(&two_roots, "t", &steps).is_err());
        let mut orphan = whole();
        orphan.push(span("rollback-agent", "5", "9", None));
        assert!(check_trace(&orphan, "t", &steps).is_err());
    }
}
