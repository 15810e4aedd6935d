//! A provider that answers as the request's `x-test` says, and keeps what it got.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Got {
    /// The request line.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub struct Provider {
    pub port: u16,
    got: Arc<Mutex<Vec<Got>>>,
    /// Events of streams that were sent.
    pub events: Arc<AtomicU64>,
}

impl Provider {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let got = Arc::new(Mutex::new(Vec::new()));
        let (kept, events) = (got.clone(), Arc::new(AtomicU64::new(0)));
        let sent = events.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (kept, sent) = (kept.clone(), sent.clone());
                std::thread::spawn(move || {
                    let _ = serve(connection, &kept, &sent);
                });
            }
        });
        Self { port, got, events }
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

fn serve(connection: TcpStream, got: &Mutex<Vec<Got>>, events: &AtomicU64) -> std::io::Result<()> {
    // Answers go out in small writes.
    connection.set_nodelay(true)?;
    let mut out = connection.try_clone()?;
    let mut input = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            input.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Got { line: line.trim_end().to_owned(), headers, body: Vec::new() };
        if let Some(length) = request.header("content-length") {
            request.body.resize(length.parse().unwrap(), 0);
            input.read_exact(&mut request.body)?;
        } else if request.header("transfer-encoding").is_some() {
            loop {
                let mut size = String::new();
                input.read_line(&mut size)?;
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                input.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                request.body.extend_from_slice(&chunk[..size]);
            }
        }
        let test = request.header("x-test").unwrap_or("json").to_owned();
        got.lock().unwrap().push(request);
        if !answer(&mut out, &test, events)? {
            return Ok(());
        }
    }
}

pub const JSON: &str = r#"{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}}"#;
pub const USAGE_EVENT: &str = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7,\"total_tokens\":18}}\n\n";
pub const EVENT: &str = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n";
pub const DONE: &str = "data: [DONE]\n\n";

fn chunk(out: &mut TcpStream, text: &str) -> std::io::Result<()> {
    write!(out, "{:x}\r\n{text}\r\n", text.len())
}

/// Returns whether the connection stays.
fn answer(out: &mut TcpStream, test: &str, events: &AtomicU64) -> std::io::Result<bool> {
    let whole = |out: &mut TcpStream, status: &str, body: &str| {
        write!(
            out,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    match test {
        "json" => whole(out, "200 OK", JSON)?,
        "slow" => {
            std::thread::sleep(Duration::from_millis(300));
            whole(out, "200 OK", JSON)?;
        }
        "no-usage" => whole(out, "200 OK", r#"{"id":"c","choices":[]}"#)?,
        "error" => whole(out, "500 Internal Server Error", r#"{"error":{}}"#)?,
        "close" => return Ok(false),
        "hang" => std::thread::sleep(Duration::from_secs(60)),
        "sse" | "sse-cut" | "sse-slow" => {
            write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )?;
            for _ in 0..5 {
                chunk(out, EVENT)?;
                out.flush()?;
                events.fetch_add(1, Ordering::Relaxed);
                let pause = if test == "sse-slow" { 500 } else { 5 };
                std::thread::sleep(Duration::from_millis(pause));
            }
            if test == "sse-cut" {
                return Ok(false);
            }
            chunk(out, USAGE_EVENT)?;
            chunk(out, DONE)?;
            out.write_all(b"0\r\n\r\n")?;
        }
        other => panic!("no such test: {other}"),
    }
    out.flush()?;
    Ok(true)
}
