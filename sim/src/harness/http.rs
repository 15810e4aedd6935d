//! A GET or POST of a small page, blocking: enough to ask a process whether it is ready.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The most that is read of a page.
const MAX_PAGE: usize = 256 << 20;

/// A page: its status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP's status.
    pub status: u16,
    /// Names (lower case) and values.
    pub headers: Vec<(String, String)>,
    /// The body; bytes that are no UTF-8 are replaced.
    pub body: String,
}

impl Page {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// GET `path` of `address` (`127.0.0.1:8080`).
///
/// # Errors
/// When there is no connection, no answer within 5 s, or no HTTP.
pub fn get(address: impl ToSocketAddrs, path: &str) -> std::io::Result<Page> {
    request(address, "GET", path, &[], b"")
}

/// Any request with a body of known length, on a connection of its own.
///
/// # Errors
/// As [`get`]; 60 s of silence for the answer.
pub fn request(
    address: impl ToSocketAddrs,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Page> {
    let bad = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let address = address.to_socket_addrs()?.next().ok_or_else(|| bad("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    if method != "GET" {
        head += &format!("content-length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    // A server may answer and close before it has read everything.
    let sent = stream.write_all(body);
    let mut answer = Vec::new();
    let mut chunk = [0; 65_536];
    // Not to the end of the connection: Envoy lingers a second before it closes.
    while !is_whole(&answer) && answer.len() < MAX_PAGE {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            // What came before it broke is the answer.
            Err(_) if !answer.is_empty() => break,
            Err(error) => {
                sent?;
                return Err(error);
            }
        }
    }
    if answer.is_empty() {
        sent?;
    }
    parse(&answer).ok_or_else(|| bad("the answer is no HTTP"))
}

/// Whether all that the head announces is there; never for a body that ends with the connection.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)).map(str::trim);
    if field("transfer-encoding:") == Some("chunked") {
        return answer.ends_with(b"0\r\n\r\n");
    }
    let length = field("content-length:").and_then(|length| length.parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

fn parse(answer: &[u8]) -> Option<Page> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunk(body) } else { body.to_vec() };
    Some(Page { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The chunks that are whole; what breaks off is left out.
fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|size| {
            usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).ok()
        });
        let Some(size) = size.filter(|size| *size > 0) else { break };
        let Some(chunk) = body.get(end + 2..end + 2 + size) else { break };
        whole.extend_from_slice(chunk);
        body = body.get(end + 4 + size..).unwrap_or_default();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_all_that_its_head_announces_is_there() {
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n\r\nabc"));
    }

    #[test]
    fn a_chunked_page_is_put_together() {
        let page = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!((page.status, page.body.as_str(), page.header("x-a")), (200, "abcde", Some("b")));
    }
}
