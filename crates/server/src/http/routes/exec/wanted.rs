//! What a request wants run, checked.

use std::time::Duration;

use bytes::Bytes;
use skep_api::{ExecRequest as Asked, StdinRequest};
use skep_core::exec::{ExecRequest, ExecStdin, LONGEST_TIMEOUT, LogLimits, Program, WhenStreamEnds};
use skep_core::terminal;

use super::super::files::refused;
use crate::config::ExecConfig;
use crate::http::error::{ApiError, ApiResult};

/// The time limit of what somebody waits for, when none is given.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn request(asked: Asked, config: &ExecConfig) -> ApiResult<ExecRequest> {
    let program = match (asked.command, asked.argv) {
        (Some(_), Some(_)) => return Err(ApiError::invalid_argument("command and argv exclude each other")),
        (None, None) => return Err(ApiError::invalid_argument("command is required")),
        (Some(command), None) => Program::Command(command),
        (None, Some(argv)) => Program::Argv(argv),
    };
    let leaves_open = asked.detach || asked.pty;
    let timeout = match asked.timeout_seconds {
        None if leaves_open => None,
        None => Some(DEFAULT_TIMEOUT),
        Some(seconds) => limit(seconds, config.max_timeout)?,
    };
    let stdin = match asked.stdin {
        None | Some(StdinRequest::Open(true)) if leaves_open => ExecStdin::Open(Bytes::new()),
        Some(StdinRequest::Open(true)) => ExecStdin::Open(Bytes::new()),
        None | Some(StdinRequest::Open(false)) => ExecStdin::Closed,
        Some(StdinRequest::Text(text)) => ExecStdin::Bytes(text.into()),
    };
    let request = ExecRequest {
        program,
        work_dir: asked.cwd.filter(|cwd| !cwd.is_empty()),
        env: asked.env.into_iter().collect(),
        stdin,
        timeout,
        terminal: asked.pty.then(|| terminal::size(asked.cols, asked.rows)),
        user: asked.user.filter(|user| !user.is_empty()),
        log: log_limits(config),
        when_stream_ends: WhenStreamEnds::GoesOn,
    };
    request.check().map_err(refused)?;
    Ok(request)
}

pub(in crate::http::routes) fn log_limits(config: &ExecConfig) -> LogLimits {
    LogLimits {
        bytes: config.log_bytes,
        keep: Some(config.keep),
    }
}

/// 0 means none.
fn limit(seconds: f64, max_timeout: Duration) -> ApiResult<Option<Duration>> {
    let most = max_timeout.min(LONGEST_TIMEOUT);
    let duration = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= most);
    match duration {
        Some(Duration::ZERO) => Ok(None),
        Some(duration) => Ok(Some(duration)),
        None => Err(ApiError::invalid_argument(format!(
            "timeout_seconds must be between 0 and {}",
            most.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(command: &str) -> Asked {
        Asked {
            command: Some(command.to_owned()),
            ..Asked::default()
        }
    }

    fn checked(asked: Asked) -> ApiResult<ExecRequest> {
        let config = ExecConfig {
            log_bytes: 1 << 20,
            keep: LONGEST_TIMEOUT,
            max_timeout: LONGEST_TIMEOUT,
        };
        request(asked, &config)
    }

    #[test]
    fn the_time_limit_depends_on_who_waits() {
        assert_eq!(checked(asked("x")).unwrap().timeout, Some(DEFAULT_TIMEOUT));
        let detached = Asked {
            detach: true,
            ..asked("x")
        };
        assert_eq!(checked(detached).unwrap().timeout, None);
        let with_terminal = Asked {
            pty: true,
            ..asked("x")
        };
        assert_eq!(checked(with_terminal.clone()).unwrap().timeout, None);
        let limited = Asked {
            timeout_seconds: Some(5.0),
            ..with_terminal
        };
        assert_eq!(checked(limited).unwrap().timeout, Some(Duration::from_secs(5)));
        let none = Asked {
            timeout_seconds: Some(0.0),
            ..asked("x")
        };
        assert_eq!(checked(none).unwrap().timeout, None);
        for bad in [-1.0, 86401.0, f64::NAN, f64::INFINITY] {
            assert!(
                checked(Asked {
                    timeout_seconds: Some(bad),
                    ..asked("x")
                })
                .is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn one_of_command_and_argv_is_needed() {
        assert!(checked(Asked::default()).is_err());
        assert!(
            checked(Asked {
                argv: Some(vec!["x".into()]),
                ..asked("x")
            })
            .is_err()
        );
        assert!(
            checked(Asked {
                argv: Some(vec![]),
                ..Asked::default()
            })
            .is_err()
        );
    }

    #[test]
    fn input_is_closed_unless_somebody_can_write_to_it() {
        assert_eq!(checked(asked("x")).unwrap().stdin, ExecStdin::Closed);
        let detached = Asked {
            detach: true,
            ..asked("x")
        };
        assert_eq!(checked(detached.clone()).unwrap().stdin, ExecStdin::Open(Bytes::new()));
        let closed = Asked {
            stdin: Some(StdinRequest::Open(false)),
            ..detached
        };
        assert_eq!(checked(closed).unwrap().stdin, ExecStdin::Closed);
        let text = Asked {
            stdin: Some(StdinRequest::Text("in".into())),
            ..asked("x")
        };
        assert_eq!(checked(text).unwrap().stdin, ExecStdin::Bytes(Bytes::from("in")));
    }
}
