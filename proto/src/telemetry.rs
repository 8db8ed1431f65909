//! Logs on stderr, spans over OTLP, and how a trace crosses a call (W3C `traceparent` in the request's metadata).
//!
//! A rollback's own spans (rollback, phase, step) are written by the coordinator from its journal when they end, with
//! ids that follow from the journal: see [`with_span_id`]. So a leader that takes over continues the same trace, and
//! no span is lost with the process that opened it.

use std::cell::Cell;
use std::io::IsTerminal;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider,
};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap, MetadataValue};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The engine's client logs whole answers when it debugs, and the environments of containers are in them.
const NEVER_DEBUG: &str = "bollard=info";

/// Every pooled connection that a restarted database has closed is worth a line to it; what comes of it is said by whoever
/// asked.
const NEVER_WARN: &str = "sqlx_core::pool=error";

/// What to log and where spans go.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `service.name` of the spans: "rollback-coordinator".
    pub service: &'static str,
    /// `service.instance.id`: the host's or replica's name.
    pub instance: String,
    /// OTLP over gRPC, `http://host:4317`. `None`: no spans are made.
    pub otlp_endpoint: Option<String>,
    /// `tracing_subscriber` directives; the environment's `ROLLBACK_LOG` overrides them.
    pub log: String,
    /// One JSON object per line.
    pub json: bool,
}

/// Keeps the exporter alive. [`Telemetry::shutdown`] sends what is left.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("OTLP endpoint {endpoint}")]
    Endpoint {
        endpoint: String,
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    #[error("log directives {0:?}")]
    Directives(String),
}

/// Installs the process's subscriber. Must be called inside a tokio runtime when an endpoint is given. A collector that
/// is not there costs nothing but the spans.
pub fn init(settings: &Settings) -> Result<Telemetry, TelemetryError> {
    let directives = std::env::var("ROLLBACK_LOG").unwrap_or_else(|_| settings.log.clone());
    let filter = EnvFilter::try_new(&directives).map_err(|_| TelemetryError::Directives(directives))?;
    let filter = filter.add_directive(NEVER_DEBUG.parse().expect("a directive"));
    let filter = filter.add_directive(NEVER_WARN.parse().expect("a directive"));
    let provider = match &settings.otlp_endpoint {
        Some(endpoint) => Some(provider(settings, endpoint)?),
        None => None,
    };
    let spans = provider.as_ref().map(|p| {
        // Spans are not filtered by the log level: a quiet log must not tear holes into traces. Only our own crates'
        // spans are exported.
        tracing_opentelemetry::layer()
            .with_tracer(p.tracer(settings.service))
            .with_location(false)
            .with_threads(false)
            .with_filter(tracing_subscriber::filter::filter_fn(|meta| {
                meta.is_span() && meta.target().starts_with("rollback")
            }))
    });
    let (plain, json) = if settings.json {
        (
            None,
            Some(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)),
        )
    } else {
        let ansi = std::io::stderr().is_terminal();
        (
            Some(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(ansi),
            ),
            None,
        )
    };
    let _ = tracing_subscriber::registry()
        .with(spans)
        .with(plain.map(|l| l.with_filter(filter.clone())))
        .with(json.map(|l| l.with_filter(filter)))
        .try_init();
    Ok(Telemetry { provider })
}

fn provider(settings: &Settings, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| TelemetryError::Endpoint {
            endpoint: endpoint.to_owned(),
            source,
        })?;
    let batches = BatchSpanProcessor::builder(exporter)
        .with_batch_config(
            BatchConfigBuilder::default()
                // Spans of a rollback are read while it runs.
                .with_scheduled_delay(std::time::Duration::from_millis(500))
                .with_max_queue_size(65_536)
                .build(),
        )
        .build();
    let resource = Resource::builder_empty()
        .with_service_name(settings.service)
        .with_attribute(KeyValue::new("service.instance.id", settings.instance.clone()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(batches)
        .with_id_generator(JournalIds::default())
        .with_resource(resource)
        .build())
}

impl Telemetry {
    /// For spans that are made from the journal rather than by `tracing`. `None` when no endpoint is configured.
    pub fn tracer(&self) -> Option<SdkTracer> {
        self.provider.as_ref().map(|p| p.tracer("rollback-journal"))
    }

    /// Sends what is left. Blocks for up to five seconds when the collector does not answer.
    pub fn shutdown(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown()
        {
            tracing::debug!(%error, "send the last spans");
        }
    }
}

thread_local! {
    static NEXT_SPAN_ID: Cell<Option<SpanId>> = const { Cell::new(None) };
}

/// Runs `start`, in which the next span that is started (on this thread, synchronously) gets this id.
pub fn with_span_id<T>(id: SpanId, start: impl FnOnce() -> T) -> T {
    NEXT_SPAN_ID.set(Some(id));
    let result = start();
    NEXT_SPAN_ID.set(None);
    result
}

/// Random ids, except where [`with_span_id`] says otherwise.
#[derive(Debug, Default)]
struct JournalIds(RandomIdGenerator);

impl IdGenerator for JournalIds {
    fn new_trace_id(&self) -> TraceId {
        self.0.new_trace_id()
    }

    fn new_span_id(&self) -> SpanId {
        NEXT_SPAN_ID.take().unwrap_or_else(|| self.0.new_span_id())
    }
}

struct Carrier<'a>(&'a mut MetadataMap);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(&value)) {
            self.0.insert(key, value);
        }
    }
}

struct Reader<'a>(&'a MetadataMap);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .filter_map(|k| match k {
                KeyRef::Ascii(k) => Some(k.as_str()),
                KeyRef::Binary(_) => None,
            })
            .collect()
    }
}

/// Writes the current `tracing` span into a request's metadata.
pub fn inject_current(metadata: &mut MetadataMap) {
    inject(&tracing::Span::current().context(), metadata);
}

/// Writes a trace context into a request's metadata. Writes nothing when the context holds no span.
pub fn inject(context: &Context, metadata: &mut MetadataMap) {
    TraceContextPropagator::new().inject_context(context, &mut Carrier(metadata));
}

/// Reads the caller's trace context from a request's metadata; an empty context when there is none.
pub fn extract(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(metadata))
}

/// Makes a span a child of the caller's.
pub fn continue_trace(span: &tracing::Span, metadata: &MetadataMap) {
    // Fails only when no OTLP layer is installed.
    let _ = span.set_parent(extract(metadata));
}

/// A context whose span is the given one, as written in a journal. `None` when the ids are not valid.
pub fn remote_context(trace_id: &str, span_id: &str) -> Option<Context> {
    let trace_id = TraceId::from_hex(trace_id).ok()?;
    let span_id = SpanId::from_hex(span_id).ok()?;
    let span = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::default());
    span.is_valid().then(|| Context::new().with_remote_span_context(span))
}
