//! What is shown while something goes on: a live line on a terminal, plain lines otherwise.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Failure;
use super::table::span;
use super::{Format, Session};
use crate::api::ClientError;
use crate::api::types::BuildLine;
use crate::model::{Digest, Name, Progress};

/// A line on standard error that says what is being done.
pub enum Ticker {
    /// It is redrawn.
    Live(ProgressBar),
    /// Every change is a new line.
    Plain,
    /// Nothing is shown: programs read the output.
    Silent,
}

impl Ticker {
    /// The kind that fits where standard error goes.
    pub fn new(format: Format) -> Self {
        match format {
            Format::Json => Self::Silent,
            Format::Table if stderr().is_terminal() => {
                let bar = ProgressBar::new_spinner();
                if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(100));
                Self::Live(bar)
            }
            Format::Table => Self::Plain,
        }
    }

    /// Says what is being done.
    pub fn say(&self, text: &str) {
        match self {
            Self::Live(bar) => bar.set_message(text.to_owned()),
            Self::Plain => eprintln!("{text}"),
            Self::Silent => {}
        }
    }

    /// Says something that stays.
    pub fn note(&self, text: &str) {
        match self {
            Self::Live(bar) => bar.println(text),
            Self::Plain | Self::Silent => eprintln!("{text}"),
        }
    }

    /// Takes the line away.
    pub fn end(&self) {
        if let Self::Live(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Where a migration stands, on one line.
pub fn line(progress: &Progress) -> String {
    let mut parts = vec![progress.phase.as_str().to_owned()];
    if let Some(round) = progress.round {
        parts[0] = format!("{} round {round}", parts[0]);
    }
    parts.push(progress.wire.to_string());
    parts.extend(progress.rate.map(|rate| rate.to_string()));
    parts.extend(
        progress
            .predicted_blackout
            .map(|time| format!("blackout about {}", span(time))),
    );
    parts.extend(
        progress
            .throttled
            .map(|share| format!("slowed down to {share} %")),
    );
    parts.extend(progress.eta.map(|time| format!("{} to go", span(time))));
    parts.join(", ")
}

/// Builds a template's image and shows how that goes. `tell`: print the image, too.
pub async fn build(session: &Session, template: &Name, tell: bool) -> Result<Digest, Failure> {
    let path = format!("/v1/templates/{template}/build");
    let mut lines = session.client.post_lines::<BuildLine>(&path, &()).await?;
    let ticker = Ticker::new(session.format);
    while let Some(line) = lines.next().await? {
        match line {
            BuildLine::Step(step) => ticker.say(&format!("image {template}: {step}")),
            BuildLine::Image(digest) => {
                ticker.end();
                if tell {
                    session.print(&digest, |digest| format!("{template} is image {digest}"))?;
                }
                return Ok(digest);
            }
            BuildLine::Failed(error) => {
                ticker.end();
                return Err(error.into());
            }
        }
    }
    ticker.end();
    Err(ClientError::CutShort { what: "the build" }.into())
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Bytes, Phase, Rate};

    #[test]
    fn a_line_tells_phase_round_bytes_rate_and_time_to_go() {
        let progress = Progress {
            phase: Phase::Memory,
            round: Some(2),
            wire: Bytes(5 << 20),
            rate: Some(Rate(1 << 20)),
            predicted_blackout: Some(Duration::from_millis(250)),
            throttled: Some(60),
            eta: Some(Duration::from_millis(1500)),
        };
        let text = "memory round 2, 5.00 MiB, 1.00 MiB/s, blackout about 250 ms, slowed down to 60 %, 1.50 s to go";
        assert_eq!(line(&progress), text);
    }
}
