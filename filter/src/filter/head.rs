//! What is kept of a request's headers until its body is whole: one allocation.

use super::OURS;
use crate::abi::{Headers, Stream};
use plimsoll_core::session::Head;

/// The headers that are read.
#[derive(Clone, Copy)]
enum Field {
    RequestId,
    Method,
    Path,
    Feature,
    User,
    Customer,
    Session,
}

const FIELDS: usize = 7;

/// A request's head, copied out of Envoy.
#[derive(Debug)]
pub(super) struct Captured {
    text: String,
    spans: [Option<(usize, usize)>; FIELDS],
    pub content_length: Option<u64>,
    pub accepts_encoding: bool,
}

impl Captured {
    /// Reads them, and removes what is ours. While the installation observes, a provider sees what it would see
    /// without us, except for the header that chooses the cluster.
    pub fn read(stream: &mut Stream<'_>, observe: bool) -> Self {
        let mut captured = Self {
            text: String::with_capacity(160),
            spans: [None; FIELDS],
            content_length: None,
            accepts_encoding: false,
        };
        let mut remove: Vec<Vec<u8>> = Vec::new();
        stream.each_header(Headers::Request, |name, value| {
            let field = match name {
                b":method" => Field::Method,
                b":path" => Field::Path,
                b"x-request-id" => Field::RequestId,
                b"content-length" => {
                    captured.content_length =
                        std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    return;
                }
                b"accept-encoding" => {
                    captured.accepts_encoding = true;
                    return;
                }
                ours if ours.starts_with(OURS.as_bytes()) => {
                    if !observe || ours == b"x-plimsoll-cluster" {
                        remove.push(ours.to_vec());
                    }
                    match &ours[OURS.len()..] {
                        b"feature" => Field::Feature,
                        b"user" => Field::User,
                        b"customer" => Field::Customer,
                        b"session" => Field::Session,
                        _ => return,
                    }
                }
                _ => return,
            };
            captured.keep(field, value);
        });
        for name in remove {
            stream.remove_header(Headers::Request, &name);
        }
        captured
    }

    fn keep(&mut self, field: Field, value: &[u8]) {
        let span = &mut self.spans[field as usize];
        // Of several values the first counts, as in Envoy.
        if span.is_none() {
            let start = self.text.len();
            self.text.push_str(&String::from_utf8_lossy(value));
            *span = Some((start, self.text.len()));
        }
    }

    fn get(&self, field: Field) -> Option<&str> {
        let (start, end) = self.spans[field as usize]?;
        self.text.get(start..end)
    }

    /// Envoy's id of the request.
    pub fn request_id(&self) -> &str {
        self.get(Field::RequestId).unwrap_or_default()
    }

    /// The path that the client sent.
    pub fn path(&self) -> &str {
        self.get(Field::Path).unwrap_or_default()
    }

    /// For the decision.
    pub fn head(&self) -> Head<'_> {
        Head {
            request_id: self.request_id(),
            attempt: 0,
            method: self.get(Field::Method).unwrap_or_default(),
            path: self.path(),
            namespace: None,
            feature: self.get(Field::Feature),
            user: self.get(Field::User),
            customer: self.get(Field::Customer),
            session: self.get(Field::Session),
        }
    }
}
