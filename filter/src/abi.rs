//! Envoy's dynamic module ABI (1.40, `v0.2.0`): every declaration and all the `unsafe`, nothing else.
//!
//! Callbacks are looked up by name when the module is loaded and called through one table, so that a
//! missing one refuses the module at start instead of killing Envoy at its first use (Envoy's own
//! version check only warns). What hooks mean stands in [`crate::filter`]; here each is caught when it
//! panics, and answers what is safe: requests are refused, answers pass.
#![allow(unsafe_code)]

use crate::filter::{BodyStatus, Filter, HeadersStatus};
use crate::process;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// The version that Envoy 1.40 announces.
const VERSION: &CStr = c"v0.2.0";

/// Bytes of Envoy or of the module.
#[repr(C)]
#[derive(Clone, Copy)]
struct Buf {
    ptr: *const c_char,
    len: usize,
}

impl Buf {
    const NONE: Self = Self { ptr: std::ptr::null(), len: 0 };

    fn of(bytes: &[u8]) -> Self {
        Self { ptr: bytes.as_ptr().cast(), len: bytes.len() }
    }

    /// # Safety
    /// The bytes must live and stay unchanged for `'a`.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: not null; the caller promises the rest.
        unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.len) }
    }
}

/// One header, of Envoy or of the module.
#[repr(C)]
#[derive(Clone, Copy)]
struct Hdr {
    key: *const c_char,
    key_len: usize,
    value: *const c_char,
    value_len: usize,
}

impl Hdr {
    const NONE: Self = Self { key: std::ptr::null(), key_len: 0, value: std::ptr::null(), value_len: 0 };
}

type FilterPtr = *mut c_void;

macro_rules! callbacks {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// Envoy's functions.
        struct Callbacks {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Callbacks {
            /// All of them, or the name of one that this Envoy does not have.
            fn find() -> Result<Self, &'static str> {
                $(
                    let name = concat!("envoy_dynamic_module_callback_", stringify!($name), "\0");
                    // SAFETY: the name ends with NUL.
                    let $name = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr().cast()) };
                    if $name.is_null() {
                        return Err(concat!("envoy_dynamic_module_callback_", stringify!($name)));
                    }
                )*
                // SAFETY: these are Envoy's functions of these names, with the signatures of its abi.h (v0.2.0);
                // `tests/envoy.rs` calls every one of them in the real binary.
                Ok(unsafe { Self { $($name: std::mem::transmute::<
                    *mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?
                >($name),)* } })
            }
        }
    };
}

callbacks! {
    log(u32, Buf);
    http_get_headers_size(FilterPtr, u32) -> usize;
    http_get_headers(FilterPtr, u32, *mut Hdr) -> bool;
    http_get_header(FilterPtr, u32, Buf, *mut Buf, usize, *mut usize) -> bool;
    http_set_header(FilterPtr, u32, Buf, Buf) -> bool;
    http_send_response(FilterPtr, u32, *const Hdr, usize, Buf, Buf);
    http_get_body_chunks_size(FilterPtr, u32) -> usize;
    http_get_body_chunks(FilterPtr, u32, *mut Buf) -> bool;
    http_get_body_size(FilterPtr, u32) -> usize;
    http_append_body(FilterPtr, u32, Buf) -> bool;
    http_drain_body(FilterPtr, u32, usize) -> bool;
    http_set_buffer_limit(FilterPtr, u64);
    http_clear_route_cache(FilterPtr);
    http_filter_continue_decoding(FilterPtr);
    http_filter_scheduler_new(FilterPtr) -> *mut c_void;
    http_filter_scheduler_commit(*mut c_void, u64);
    http_filter_scheduler_delete(*mut c_void);
}

static CALLBACKS: OnceLock<Callbacks> = OnceLock::new();

/// Envoy's functions; outside Envoy (in tests of other files) there are none.
fn envoy() -> Option<&'static Callbacks> {
    CALLBACKS.get()
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Something does not work as it should.
    Warn,
    /// Something does not work.
    Error,
}

/// Writes a line to Envoy's log; outside Envoy to stderr.
pub fn log(level: Level, line: &str) {
    let number = match level {
        Level::Info => 2,
        Level::Warn => 3,
        Level::Error => 4,
    };
    match envoy() {
        // SAFETY: the line lives over the call.
        Some(envoy) => unsafe { (envoy.log)(number, Buf::of(line.as_bytes())) },
        None => eprintln!("{level:?}: {line}"),
    }
}

/// Which headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// Of the request.
    Request,
    /// Of the response.
    Response,
}

impl Headers {
    const fn number(self) -> u32 {
        match self {
            Self::Request => 0,
            Self::Response => 2,
        }
    }
}

/// Which part of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Of the request: what came with this hook.
    Received,
    /// Of the request: what came before and was kept.
    Buffered,
    /// Of the response: what came with this hook.
    Response,
}

impl Body {
    const fn number(self) -> u32 {
        match self {
            Self::Received => 0,
            Self::Buffered => 1,
            Self::Response => 2,
        }
    }
}

/// The stream that a hook is called for. It can't outlive the hook; what is borrowed from it ends with
/// the next change.
pub struct Stream<'hook> {
    filter: FilterPtr,
    envoy: &'static Callbacks,
    hook: PhantomData<&'hook Cell<()>>,
}

/// The most headers that are read without an allocation.
const FEW: usize = 48;

impl Stream<'_> {
    /// # Safety
    /// `filter` must be what Envoy gave to the running hook.
    unsafe fn new(filter: FilterPtr) -> Option<Self> {
        Some(Self { filter, envoy: envoy()?, hook: PhantomData })
    }

    /// Shows each header to `seen`: name and value.
    pub fn each_header<'s>(&'s self, headers: Headers, mut seen: impl FnMut(&'s [u8], &'s [u8])) {
        // SAFETY: the filter is valid during the hook.
        let count = unsafe { (self.envoy.http_get_headers_size)(self.filter, headers.number()) };
        let mut few = [Hdr::NONE; FEW];
        let mut many = Vec::new();
        let found = match few.get_mut(..count) {
            Some(found) => found,
            None => {
                many.resize(count, Hdr::NONE);
                many.as_mut_slice()
            }
        };
        // SAFETY: there is room for as many headers as Envoy has.
        if !unsafe { (self.envoy.http_get_headers)(self.filter, headers.number(), found.as_mut_ptr()) } {
            return;
        }
        for Hdr { key, key_len, value, value_len } in found.iter().copied() {
            // SAFETY: Envoy's bytes live until the next change of the headers, which needs `&mut self`.
            let (key, value) = unsafe {
                (Buf { ptr: key, len: key_len }.bytes(), Buf { ptr: value, len: value_len }.bytes())
            };
            seen(key, value);
        }
    }

    /// The first value of a header.
    #[must_use]
    pub fn header(&self, headers: Headers, name: &str) -> Option<&[u8]> {
        let mut found = Buf::NONE;
        let mut count = 0;
        let name = Buf::of(name.as_bytes());
        // SAFETY: the pointers are to locals; the filter is valid during the hook.
        let is = unsafe {
            (self.envoy.http_get_header)(
                self.filter,
                headers.number(),
                name,
                &raw mut found,
                0,
                &raw mut count,
            )
        };
        // SAFETY: Envoy's bytes live until the next change of the headers, which needs `&mut self`.
        (is && !found.ptr.is_null()).then(|| unsafe { found.bytes() })
    }

    /// Replaces all values of a header by one.
    pub fn set_header(&mut self, headers: Headers, name: &str, value: &[u8]) {
        let (name, value) = (Buf::of(name.as_bytes()), Buf::of(value));
        // SAFETY: the bytes live over the call, Envoy copies them.
        unsafe { (self.envoy.http_set_header)(self.filter, headers.number(), name, value) };
    }

    /// Removes a header.
    pub fn remove_header(&mut self, headers: Headers, name: &[u8]) {
        // SAFETY: as above; a null value removes.
        unsafe { (self.envoy.http_set_header)(self.filter, headers.number(), Buf::of(name), Buf::NONE) };
    }

    /// Bytes in a part of the body.
    #[must_use]
    pub fn body_size(&self, body: Body) -> usize {
        // SAFETY: the filter is valid during the hook.
        unsafe { (self.envoy.http_get_body_size)(self.filter, body.number()) }
    }

    /// Shows each piece of a part of the body to `seen`.
    pub fn each_piece<'s>(&'s self, body: Body, mut seen: impl FnMut(&'s [u8])) {
        // SAFETY: the filter is valid during the hook.
        let count = unsafe { (self.envoy.http_get_body_chunks_size)(self.filter, body.number()) };
        if count == 0 {
            return;
        }
        let mut few = [Buf::NONE; 8];
        let mut many = Vec::new();
        let found = match few.get_mut(..count) {
            Some(found) => found,
            None => {
                many.resize(count, Buf::NONE);
                many.as_mut_slice()
            }
        };
        // SAFETY: there is room for as many pieces as Envoy has.
        if unsafe { (self.envoy.http_get_body_chunks)(self.filter, body.number(), found.as_mut_ptr()) } {
            for piece in found.iter() {
                // SAFETY: Envoy's bytes live until the next change of the body, which needs `&mut self`.
                seen(unsafe { piece.bytes() });
            }
        }
    }

    /// Replaces a part of the body.
    pub fn replace_body(&mut self, body: Body, bytes: &[u8]) {
        self.drain_body(body);
        // SAFETY: the bytes live over the call, Envoy copies them.
        unsafe { (self.envoy.http_append_body)(self.filter, body.number(), Buf::of(bytes)) };
    }

    /// Empties a part of the body.
    pub fn drain_body(&mut self, body: Body) {
        let size = self.body_size(body);
        if size > 0 {
            // SAFETY: the filter is valid during the hook.
            unsafe { (self.envoy.http_drain_body)(self.filter, body.number(), size) };
        }
    }

    /// Lets this stream keep up to `bytes` of its body.
    pub fn set_buffer_limit(&mut self, bytes: u64) {
        // SAFETY: the filter is valid during the hook.
        unsafe { (self.envoy.http_set_buffer_limit)(self.filter, bytes) };
    }

    /// Has the route chosen anew from the headers as they are now.
    pub fn clear_route_cache(&mut self) {
        // SAFETY: the filter is valid during the hook.
        unsafe { (self.envoy.http_clear_route_cache)(self.filter) };
    }

    /// Answers in the provider's place. Envoy calls the filter's response hooks from inside of it.
    pub fn send_response(&mut self, status: u16, headers: &[(&str, &[u8])], body: &[u8], details: &str) {
        let headers: Vec<Hdr> = headers
            .iter()
            .map(|(key, value)| Hdr {
                key: key.as_ptr().cast(),
                key_len: key.len(),
                value: value.as_ptr().cast(),
                value_len: value.len(),
            })
            .collect();
        let (body, details) = (Buf::of(body), Buf::of(details.as_bytes()));
        // SAFETY: all bytes live over the call, Envoy copies them.
        unsafe {
            (self.envoy.http_send_response)(
                self.filter,
                u32::from(status),
                headers.as_ptr(),
                headers.len(),
                body,
                details,
            );
        }
    }

    /// Lets a paused request go on. Nothing of the stream may be touched after it.
    pub fn continue_decoding(self) {
        // SAFETY: the filter is valid during the hook.
        unsafe { (self.envoy.http_filter_continue_decoding)(self.filter) };
    }

    /// What wakes this stream from another thread.
    #[must_use]
    pub fn scheduler(&mut self) -> Scheduler {
        // SAFETY: the filter is valid during the hook.
        let scheduler = unsafe { (self.envoy.http_filter_scheduler_new)(self.filter) };
        Scheduler { scheduler, envoy: self.envoy }
    }
}

/// Wakes one stream from any thread.
pub struct Scheduler {
    scheduler: *mut c_void,
    envoy: &'static Callbacks,
}

// SAFETY: Envoy documents the scheduler as usable from any thread; it outlives its stream.
unsafe impl Send for Scheduler {}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scheduler")
    }
}

impl Scheduler {
    /// Has Envoy call the filter's scheduled hook with `event`.
    pub fn commit(&self, event: u64) {
        // SAFETY: it lives until dropped.
        unsafe { (self.envoy.http_filter_scheduler_commit)(self.scheduler, event) };
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: made by `scheduler_new`, deleted once.
        unsafe { (self.envoy.http_filter_scheduler_delete)(self.scheduler) };
    }
}

/// Runs a hook; a panic is logged and gives `None`.
fn caught<T>(hook: &str, run: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => Some(done),
        Err(_) => {
            // What panicked may hold a prompt: only the place is told.
            log(Level::Error, &format!("plimsoll: a panic in {hook} was caught; please report it"));
            None
        }
    }
}

/// A request whose handling panicked is refused: nothing goes on that was not reserved.
fn refuse_panicked(filter: FilterPtr) {
    // SAFETY: called from a hook with Envoy's pointer.
    if let Some(mut stream) = unsafe { Stream::new(filter) } {
        let body = br#"{"error":{"type":"internal_error","code":"internal_error","message":"Plimsoll's filter failed; the call was not sent."}}"#;
        stream.send_response(500, &[("content-type", b"application/json")], body, "plimsoll_internal_error");
    }
}

/// # Safety
/// `module` must be what `filter_new` returned, not yet destroyed.
unsafe fn filter<'a>(module: *const c_void) -> Option<&'a Filter> {
    // SAFETY: the caller promises.
    unsafe { module.cast::<Filter>().as_ref() }
}

/// Envoy loads the module.
#[unsafe(no_mangle)]
pub extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    match Callbacks::find() {
        Ok(callbacks) => {
            // A second load finds the same functions.
            let _ = CALLBACKS.set(callbacks);
            // The default hook prints the panic's text, which may quote a prompt. This one is this module's only.
            std::panic::set_hook(Box::new(|panic| {
                let place = panic.location().map_or_else(String::new, ToString::to_string);
                log(Level::Error, &format!("plimsoll: a panic at {place}"));
            }));
            VERSION.as_ptr()
        }
        Err(missing) => {
            eprintln!(
                "plimsoll: this Envoy has no {missing}; this filter is for Envoy 1.40 (ABI {VERSION:?}), build one for this Envoy"
            );
            std::ptr::null()
        }
    }
}

/// # Safety
/// Called by Envoy.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    _envoy: *mut c_void,
    _name: Buf,
    config: Buf,
) -> *const c_void {
    // SAFETY: Envoy's bytes live over the hook.
    let config = unsafe { config.bytes() };
    match caught("config_new", || process::configure(config)) {
        Some(Ok(shared)) => Box::into_raw(Box::new(shared)).cast_const().cast(),
        Some(Err(error)) => {
            log(Level::Error, &format!("plimsoll: {error}"));
            std::ptr::null()
        }
        None => std::ptr::null(),
    }
}

/// # Safety
/// Called by Envoy, once for each configuration.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(config: *const c_void) {
    if !config.is_null() {
        // SAFETY: made by `config_new`, destroyed once.
        let configured = unsafe { Box::from_raw(config.cast::<process::Configured>().cast_mut()) };
        caught("config_destroy", move || process::release(*configured));
    }
}

/// # Safety
/// Called by Envoy.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_scheduled(
    _: *mut c_void,
    _: *const c_void,
    _: u64,
) {
}

/// # Safety
/// Called by Envoy.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(
    config: *const c_void,
    _envoy: FilterPtr,
) -> *const c_void {
    // SAFETY: made by `config_new`; Envoy keeps it while filters are made of it.
    let Some(shared) = (unsafe { config.cast::<process::Configured>().as_ref() }) else {
        return std::ptr::null();
    };
    Box::into_raw(Box::new(Filter::new(shared.clone()))).cast_const().cast()
}

/// # Safety
/// Called by Envoy, once for each filter.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(module: *const c_void) {
    if !module.is_null() {
        // SAFETY: made by `filter_new`, destroyed once.
        let filter = unsafe { Box::from_raw(module.cast::<Filter>().cast_mut()) };
        caught("destroy", move || filter.end());
    }
}

macro_rules! request_hook {
    ($name:ident($($arg:ident: $ty:ty),*), $status:ident, $call:ident) => {
        /// # Safety
        /// Called by Envoy.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(envoy: FilterPtr, module: *const c_void $(, $arg: $ty)*) -> u32 {
            // SAFETY: Envoy's pointers, valid over the hook.
            let (Some(filter), Some(mut stream)) = (unsafe { (filter(module), Stream::new(envoy)) }) else {
                return $status::Continue.number();
            };
            match caught(stringify!($call), || filter.$call(&mut stream $(, $arg)*)) {
                Some(status) => status.number(),
                None => {
                    refuse_panicked(envoy);
                    $status::Stop.number()
                }
            }
        }
    };
}

macro_rules! response_hook {
    ($name:ident($($arg:ident: $ty:ty),*), $call:ident) => {
        /// # Safety
        /// Called by Envoy.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(envoy: FilterPtr, module: *const c_void $(, $arg: $ty)*) -> u32 {
            // SAFETY: Envoy's pointers, valid over the hook.
            if let (Some(filter), Some(mut stream)) = unsafe { (filter(module), Stream::new(envoy)) } {
                // An answer passes whatever happens: it is paid for. What is not settled here is at the end.
                caught(stringify!($call), || filter.$call(&mut stream $(, $arg)*));
            }
            0
        }
    };
}

impl HeadersStatus {
    const fn number(self) -> u32 {
        match self {
            Self::Continue => 0,
            Self::Stop => 1,
        }
    }
}

impl BodyStatus {
    const fn number(self) -> u32 {
        match self {
            Self::Continue => 0,
            Self::Stop => 1,
        }
    }
}

request_hook!(envoy_dynamic_module_on_http_filter_request_headers(end: bool), HeadersStatus, request_headers);
request_hook!(envoy_dynamic_module_on_http_filter_request_body(end: bool), BodyStatus, request_body);
request_hook!(envoy_dynamic_module_on_http_filter_request_trailers(), HeadersStatus, request_trailers);
response_hook!(envoy_dynamic_module_on_http_filter_response_headers(end: bool), response_headers);
response_hook!(envoy_dynamic_module_on_http_filter_response_body(end: bool), response_body);
response_hook!(envoy_dynamic_module_on_http_filter_response_trailers(), response_trailers);

/// # Safety
/// Called by Envoy.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(
    _envoy: FilterPtr,
    module: *const c_void,
) {
    // SAFETY: Envoy's pointer, valid over the hook.
    if let Some(filter) = unsafe { filter(module) } {
        caught("stream_complete", || filter.end());
    }
}

/// # Safety
/// Called by Envoy, on the stream's worker.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    envoy: FilterPtr,
    module: *const c_void,
    event: u64,
) {
    // SAFETY: Envoy's pointers, valid over the hook.
    if let (Some(filter), Some(stream)) = unsafe { (filter(module), Stream::new(envoy)) }
        && caught("scheduled", || filter.scheduled(stream, event)).is_none()
    {
        refuse_panicked(envoy);
    }
}

/// # Safety
/// Called by Envoy when it answers itself.
#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_local_reply(
    _envoy: FilterPtr,
    module: *const c_void,
    _status: u32,
    details: Buf,
    _reset: bool,
) -> u32 {
    // SAFETY: Envoy's pointers, valid over the hook.
    if let (Some(filter), details) = unsafe { (filter(module), details.bytes()) } {
        caught("local_reply", || filter.local_reply(details));
    }
    0
}

macro_rules! unused_hook {
    ($($name:ident($($ty:ty),*);)*) => { $(
        /// Envoy wants it to be there; the filter never asks for it.
        ///
        /// # Safety
        /// Called by Envoy.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($(_: $ty),*) {}
    )* };
}

unused_hook! {
    envoy_dynamic_module_on_http_filter_http_callout_done(FilterPtr, *const c_void, u64, u32, *mut Hdr, usize, *mut Buf, usize);
    envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(FilterPtr, *const c_void);
    envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(FilterPtr, *const c_void);
    envoy_dynamic_module_on_http_filter_http_stream_headers(FilterPtr, *const c_void, u64, *mut Hdr, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_data(FilterPtr, *const c_void, u64, *const Buf, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_trailers(FilterPtr, *const c_void, u64, *mut Hdr, usize);
    envoy_dynamic_module_on_http_filter_http_stream_complete(FilterPtr, *const c_void, u64);
    envoy_dynamic_module_on_http_filter_http_stream_reset(FilterPtr, *const c_void, u64, u32);
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn a_hook_that_panics_does_not_take_envoy_with_it() {
        assert_eq!(caught("hook", || 1), Some(1));
        assert_eq!(caught::<u32>("hook", || std::panic::resume_unwind(Box::new("a hook"))), None);
    }
}
