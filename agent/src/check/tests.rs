//! Checks against real sockets: what passes, what does not, and that an unhelpful peer cannot hold a check up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn check(toml: &str) -> HealthCheck {
    toml::from_str(toml).expect("a valid check")
}

/// Answers every connection with what `answer` makes of the number of the connection and the path asked for.
async fn server(answer: impl Fn(usize, &str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let count = AtomicUsize::new(0);
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut request = [0u8; 2048];
            let n = peer.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..n]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or("");
            let reply = answer(count.fetch_add(1, Ordering::SeqCst), path);
            let _ = peer.write_all(reply.as_bytes()).await;
        }
    });
    address
}

fn reply(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn passes_on_2xx_and_the_expected_version_only() {
    let at = server(|_, path| match path {
        "/health" => reply("204 No Content", ""),
        "/json" => reply("200 OK", r#"{"version":"2.9.0","commit":"x"}"#),
        "/plain" => reply("200 OK", "v2.9.0\n"),
        "/empty" => reply("200 OK", ""),
        _ => reply("500 Internal Server Error", "no"),
    })
    .await;
    for (version, good) in [("/json", true), ("/plain", true), ("/empty", false), ("/broken", false)] {
        let check = check(&format!("http = 'http://{at}/health'\nversion = '{version}'"));
        assert_eq!(check.once(Some("v2.9.0")).await.is_ok(), good, "{version}");
        let other = check
            .once(Some("v3.0.0"))
            .await
            .expect_err("another version is not a pass");
        assert_eq!(other.code, Code::Unhealthy);
        assert!(check.once(None).await.is_ok(), "no version is expected");
    }
    let broken = check(&format!("http = 'http://{at}/broken'"))
        .once(None)
        .await
        .expect_err("500 is not a pass");
    assert!(broken.message.contains("status 500"), "{}", broken.message);
}

#[tokio::test]
async fn waits_until_it_passes() {
    let at = server(|n, _| {
        if n < 5 {
            reply("503 Service Unavailable", "")
        } else {
            reply("200 OK", "")
        }
    })
    .await;
    let check = check(&format!("http = 'http://{at}/'\nevery = '1ms'\nwithin = '20s'"));
    check
        .wait(None, Instant::now() + Duration::from_secs(20))
        .await
        .expect("healthy at the sixth try");
}

#[tokio::test]
async fn a_silent_peer_cannot_hold_it_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = listener.local_addr().expect("address");
    let check = check(&format!("http = 'http://{at}/'\ntimeout = '60s'\nwithin = '60s'"));
    let begun = Instant::now();
    let problem = check
        .wait(None, begun + Duration::from_millis(200))
        .await
        .expect_err("nobody answers");
    assert!(problem.message.contains("no answer"), "{}", problem.message);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let at = server(|_, _| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n{}",
            "v".repeat(200_000)
        )
    })
    .await;
    let check = check(&format!("http = 'http://{at}/'\nversion = '/v'"));
    let problem = check.once(Some("v1")).await.expect_err("not the version");
    assert!(problem.message.len() < 400, "the message must not echo a flood");
}

#[tokio::test]
async fn tcp_wants_a_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = listener.local_addr().expect("address");
    let check = check(&format!("tcp = '{at}'"));
    check.once(Some("ignored")).await.expect("somebody listens");
    drop(listener);
    check.once(None).await.expect_err("nobody listens");
}

#[test]
fn refuses_what_cannot_be_checked() {
    for bad in [
        "",
        "http = 'https://x/'",
        "http = 'ftp://x/'",
        "tcp = 'x'",
        "tcp = ':80'",
        "tcp = 'a:1'\nhttp = 'http://x/'",
        "tcp = 'a:1'\nversion = '/v'",
        "tcp = 'a:1'\nwithin = '1'",
        "tcp = 'a:1'\nevery = '0s'",
        "tcp = 'a:1'\nunknown = 1",
        "[postgres]\nuser = 'a'",
    ] {
        assert!(toml::from_str::<HealthCheck>(bad).is_err(), "{bad:?} was accepted");
    }
    assert!(toml::from_str::<HealthCheck>("[postgres]\nuser = 'a'\ndatabase = 'b'").is_ok());
}
