//! The one error type: what kind of failure, what was being done, and the cause below it.
//!
//! Messages read outermost first: `slide.svs: directory 2: tag 324 TileOffsets: count 7, expected 12`.

use std::fmt;

/// What went wrong, in the terms a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bytes contradict their own format.
    Malformed,
    /// The bytes are valid but use something this program does not read.
    Unsupported,
    /// A stated bound (pixels, tag bytes, directories, scans) would be exceeded.
    Limit,
    /// The operating system refused or cut short a read or write.
    Io,
    /// A weight, shape or layout does not fit the model it is meant for.
    Weights,
    /// A compute device is absent, unsuitable or failed.
    Device,
    /// The caller asked for something that cannot be (wrong argument, file or combination).
    Usage,
}

/// An error with its context, outermost first when printed.
pub struct Error {
    kind: Kind,
    message: String,
    context: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), context: Vec::new(), source: None }
    }

    /// The bytes contradict their own format.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, message)
    }

    /// Valid, but not something this program reads.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// A stated bound would be exceeded.
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(Kind::Limit, message)
    }

    /// A weight, shape or layout does not fit.
    pub fn weights(message: impl Into<String>) -> Self {
        Self::new(Kind::Weights, message)
    }

    /// A compute device is absent, unsuitable or failed.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }

    /// The caller asked for something that cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// An operating-system error while doing `what`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Error {
            kind: Kind::Io,
            message: format!("{}: {source}", what.into()),
            context: Vec::new(),
            source: Some(Box::new(source)),
        }
    }

    /// Adds what was being done (a file, a directory, a tag, a tile) in front of the message.
    #[must_use]
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.context.push(what.into());
        self
    }

    /// Attaches the lower-level error this one was made from.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.context.iter().rev() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// Adds context to a failing [`Result`] without building the text on success.
pub trait Context<T> {
    /// Puts `what()` in front of the message of an error.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.context(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_reads_outermost_first() {
        let error = Error::malformed("count 7, expected 12").context("tag 324").context("a.svs");
        assert_eq!(error.to_string(), "a.svs: tag 324: count 7, expected 12");
        assert_eq!(error.kind(), Kind::Malformed);
    }
}
