//! The log that callers name: containerd and Podman read errors out of it, so its lines are those of runc.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Globals, LogFormat};

/// Where errors go besides standard error.
#[derive(Debug)]
pub struct Log {
    file: Option<File>,
    format: LogFormat,
}

impl Log {
    /// Opens the file that was named, if one was. One that cannot be opened is told of.
    pub fn open(globals: &Globals) -> Self {
        let file = globals.log.as_ref().and_then(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.map_err(|error| {
                eprintln!("godwit: cannot open the log {}: {error}", path.display())
            })
            .ok()
        });
        let log = Self {
            file,
            format: globals.log_format,
        };
        if globals.debug {
            let words: Vec<String> = std::env::args().skip(1).collect();
            log.write("debug", &format!("called with {words:?}"));
        }
        log
    }

    /// Tells an error, and how to exit.
    pub fn fatal(&self, message: &str, code: u8) -> ExitCode {
        self.write("error", message);
        eprintln!("godwit: {message}");
        ExitCode::from(code)
    }

    fn write(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_ref() else {
            return;
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = crate::model::time::rfc3339(since.unwrap_or_default());
        let line = match self.format {
            LogFormat::Json => {
                let line = serde_json::json!({"level": level, "msg": message, "time": time});
                format!("{line}\n")
            }
            LogFormat::Text => format!("time={time:?} level={level} msg={message:?}\n"),
        };
        // In one write, so that lines of several writers do not mix. It is told on standard error too.
        let _ = file.write_all(line.as_bytes());
    }
}
