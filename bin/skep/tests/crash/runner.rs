//! One trial: a known state, a point armed, the operation, the crash, the next server, the comparison, the repeat.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;
use skep_names::BotId;
use skep_store::OperationState;

use crate::contents::Expected;
use crate::model::State;
use crate::points::{Exit, Queue, Trial};
use crate::report::Report;
use crate::scenarios::{Act, Scenario};
use crate::stage::{Stage, converge_limit};
use crate::written::{Written, archive_of};

const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Arms whatever point comes.
const ANY_POINT: &str = "*";
/// An operation that is over had this long to pass its point.
const TOO_LATE: Duration = Duration::from_secs(20);
/// A server that passes no point for so long has come to rest, or is killed on its way to the next: both are tried.
const AT_REST: Duration = Duration::from_millis(500);

/// Why a trial failed, and what it cost.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    pub(crate) why: String,
    pub(crate) lost_bytes: u64,
    pub(crate) lost_workspace: bool,
    /// Without their layer, or all of a workspace's.
    pub(crate) lost_versions: usize,
    pub(crate) leaks: usize,
    /// The end of the server's log.
    pub(crate) log: String,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self {
            leaks: why.lines().filter(|line| line.trim_start().starts_with("+ ")).count(),
            lost_versions: why
                .lines()
                .map(str::trim_start)
                .filter(|line| line.starts_with("- versions of") || line.starts_with("+ version "))
                .count(),
            lost_workspace: why.lines().any(|line| line.trim_start().starts_with("- active layer")),
            why,
            ..Self::default()
        }
    }
}

type Tried<T> = Result<T, Failure>;

/// Status, body, and the operation it began.
type Answer = (StatusCode, Value, Option<String>);

/// How a request came to its end.
enum Came {
    /// Status, body, and the operation it began.
    Answered(StatusCode, Value, Option<String>),
    /// The server died first.
    Died,
}

/// Takes trials off the queue until it is empty. A stage that a trial spoilt is left and another one built.
pub(crate) async fn work_off(queue: &Queue, report: &Report) {
    let mut stage = None;
    while let Some(trial) = queue.next() {
        let mut here = match stage.take() {
            Some(stage) => stage,
            None => Stage::start().await,
        };
        match tried(&mut here, &trial).await {
            Ok(took) => {
                report.converged(took);
                stage = Some(here);
            }
            Err(mut failure) => {
                failure.log = last_lines(&here.installation.log_tail());
                report.failed(&trial.to_string(), &failure);
            }
        }
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Runs a scenario with nothing armed, and returns the points it passed.
pub(crate) async fn undisturbed(stage: &mut Stage, scenario: &'static Scenario) -> Tried<Vec<String>> {
    stage.prepare(scenario.from).await;
    stage.arm(None);
    let name = stage.new_name();
    let asked = ask(stage, scenario.act, &name, "undisturbed").await;
    let came = asked.end(stage).await?;
    find_new_bot(stage, scenario, &name).await?;
    succeeded(stage, scenario, &came).await?;
    until(stage, &[scenario.to]).await?;
    takes_up(stage, scenario, &name).await?;
    stage.subject_is(scenario.to);
    Ok(stage.passed())
}

async fn tried(stage: &mut Stage, trial: &Trial) -> Tried<Option<Duration>> {
    let scenario = trial.scenario;
    stage.prepare(scenario.from).await;
    stage.arm(Some((&trial.point, trial.occurrence, trial.exit)));
    let name = stage.new_name();
    let asked = ask(stage, scenario.act, &name, &trial.to_string()).await;
    if trial.exit == Exit::Containerd {
        end_containerd_there(stage).await?;
    }
    let came = asked.end(stage).await?;
    if !stage.has_fired() {
        return Err(format!("the point was not passed; passed were {:?}", stage.passed()).into());
    }
    let took = match trial.exit {
        Exit::Abort | Exit::AbortThen(_) => Some(after_abort(stage, trial, &name, &came).await?),
        Exit::Error | Exit::Containerd => {
            after_failure(stage, trial, &name, came).await?;
            None
        }
    };
    takes_up(stage, scenario, &name).await?;
    if !stage.giver_is_whole() {
        return Err("the backup of the giver is not what it was".to_owned().into());
    }
    if !stage.bystander_runs_on().await {
        return Err("the bystander that ran was restarted".to_owned().into());
    }
    stage.subject_is(scenario.to);
    Ok(took)
}

/// The next server brings it to its end; what never was an operation never was.
async fn after_abort(stage: &mut Stage, trial: &Trial, name: &str, came: &Came) -> Tried<Duration> {
    let scenario = trial.scenario;
    if !matches!(came, Came::Died) {
        return Err("the server did not die".to_owned().into());
    }
    let passed = stage.passed();
    let began = |mark: &str| passed.iter().any(|line| line.split(' ').next() == Some(mark));
    let journaled = began("operation.journaled");
    if let Exit::AbortThen(then) = trial.exit {
        crash_again(stage, then).await?;
    }
    stage.arm(None);
    let begun = Instant::now();
    stage.installation.start_server_again().await;
    find_new_bot(stage, scenario, name).await?;
    let goal = match journaled || began("bot.inserted") || scenario.act == Act::KillFirstProcess {
        true => scenario.to,
        false => scenario.from,
    };
    let goals = match (scenario.rolls_back, goal) {
        (true, _) => vec![goal, scenario.from],
        // A server that starts puts a lost container back by itself, and records what nobody did.
        (false, found) if found == State::Orphaned || found.is_unrecorded() => vec![goal, State::Stopped],
        (false, _) => vec![goal],
    };
    until(stage, &goals).await?;
    let took = begun.elapsed();
    let taken_back = scenario.rolls_back && last_operation_was_cancelled(stage, scenario).await;
    if journaled && goal != State::NoBot && !taken_back {
        last_operation_succeeded(stage, scenario).await?;
    }
    keeps_what_was_written(stage, scenario, name).await?;
    // The answer to the same request again is that it was taken back: it is asked anew.
    let key = match taken_back {
        true => format!("{trial} again"),
        false => trial.to_string(),
    };
    repeat(stage, scenario, name, &key).await?;
    Ok(took)
}

/// The next server is ended too, at the so manieth point it passes; or by a kill, when it has passed all it had to.
async fn crash_again(stage: &mut Stage, then: usize) -> Tried<()> {
    stage.arm(Some((ANY_POINT, then, Exit::AbortThen(then))));
    stage.installation.spawn_server_again();
    let deadline = Instant::now() + converge_limit();
    let mut quiet = Quiet::new();
    while stage.installation.server_end().is_none() {
        if stage.has_fired() {
            // It is gone in a moment.
        } else if quiet.is_over(stage.passed().len()) {
            stage.installation.kill_server();
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("the second server neither dies nor comes to rest".to_owned().into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match stage.has_fired() {
        true => Ok(()),
        false => Err("the second server died by itself".to_owned().into()),
    }
}

/// Whether a count has stayed the same for long.
struct Quiet {
    count: usize,
    since: Instant,
}

impl Quiet {
    fn new() -> Self {
        Self {
            count: 0,
            since: Instant::now(),
        }
    }

    fn is_over(&mut self, count: usize) -> bool {
        if count != self.count {
            *self = Self {
                count,
                since: Instant::now(),
            };
        }
        self.since.elapsed() > AT_REST
    }
}

async fn end_containerd_there(stage: &mut Stage) -> Tried<()> {
    let deadline = Instant::now() + converge_limit();
    while !stage.has_fired() {
        if Instant::now() > deadline {
            return Err(format!("the point was not passed; passed were {:?}", stage.passed()).into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    stage.end_containerd().await;
    Ok(())
}

/// It fails, or a second try within it works; either way nothing is left over, and a repeat works.
async fn after_failure(stage: &mut Stage, trial: &Trial, name: &str, came: Came) -> Tried<()> {
    let scenario = trial.scenario;
    if matches!(came, Came::Died) {
        return Err("the server died of a failure".to_owned().into());
    }
    find_new_bot(stage, scenario, name).await?;
    let mut has_succeeded = false;
    if succeeded(stage, scenario, &came).await.is_ok() {
        match scenario.act {
            // All of the archive is in, which is what is answered, also when the workspace then does not start.
            Act::Import => until(stage, &[&[scenario.to], scenario.after_failure].concat()).await?,
            Act::RestoreByName => until(stage, &[scenario.to, State::DownRestorable]).await?,
            // The same, and nothing of it is kept elsewhere any more.
            _ if scenario.kinds == ["restore"] => until(stage, &[scenario.to, State::Down]).await?,
            _ => until(stage, &[scenario.to]).await?,
        }
        has_succeeded = true;
    } else if !scenario.after_failure.is_empty() || trial.exit == Exit::Containerd {
        let mended = match trial.exit {
            // Those who see that it is back bring up what should run, or take back what was begun.
            // That it is to run is written before its limits are.
            Exit::Containerd if scenario.to == State::RunningLimited => {
                vec![scenario.from, State::Running, scenario.to]
            }
            // What ran runs again, and a check says why the bot is still there.
            Exit::Containerd if scenario.kinds == ["delete_bot"] => {
                vec![scenario.from, State::NotRemoved, scenario.to]
            }
            Exit::Containerd => vec![scenario.from, scenario.to],
            _ => Vec::new(),
        };
        until(stage, &[scenario.after_failure, &mended].concat()).await?;
    }
    keeps_what_was_written(stage, scenario, name).await?;
    if has_succeeded && scenario.kinds == ["restore"] && scenario.act != Act::RestoreByName {
        // What was put back is not kept any more: to ask anew is another request, and refused.
        let start = Act::Request("POST", "/container/start", "");
        ask(stage, start, name, &format!("{trial} started"))
            .await
            .end(stage)
            .await?;
        return until(stage, &[scenario.to]).await;
    }
    repeat(stage, scenario, name, &format!("{trial} again")).await
}

/// Asks for the same again, with the same idempotency key after a crash, and compares once more.
async fn repeat(stage: &mut Stage, scenario: &'static Scenario, name: &str, key: &str) -> Tried<()> {
    let act = match scenario.act {
        Act::KillFirstProcess => Act::Request("POST", "/container/start", ""),
        // The bot is there, only its workspace is not: it is the workspace's create that is repeated.
        act if act.makes_a_bot() && stage.subject.is_some() && key.ends_with(" again") => {
            Act::Request("POST", "/container", "{}")
        }
        act => act,
    };
    if stage.subject.is_none() && !act.makes_a_bot() {
        return Ok(());
    }
    let asked = ask(stage, act, name, key).await;
    let came = asked.end(stage).await?;
    find_new_bot(stage, scenario, name).await?;
    let may_be_gone = scenario.to.has_no_bot() || scenario.kinds == ["snapshot_delete"];
    if !may_be_gone || !matches!(came, Came::Answered(StatusCode::NOT_FOUND, ..)) {
        succeeded(stage, scenario, &came)
            .await
            .map_err(|failure| Failure::from(format!("the repeat failed: {}", failure.why)))?;
    }
    until(stage, &[scenario.to]).await.map_err(|failure| Failure {
        why: format!("after the repeat: {}", failure.why),
        ..failure
    })
}

async fn until(stage: &mut Stage, states: &[State]) -> Tried<()> {
    stage.until(states).await.map(drop).map_err(Failure::from)
}

/// What is held at the end of a trial is what was asked for, and from now on is what was written.
async fn takes_up(stage: &mut Stage, scenario: &Scenario, name: &str) -> Tried<()> {
    let before = stage.written.clone();
    stage.written = match scenario.act {
        Act::NewBotOfBackup => stage.given().to_owned(),
        _ => after(stage, scenario, name),
    };
    if !scenario.to.has_bytes() {
        return Ok(());
    }
    let expected = Expected {
        presents: vec![stage.written.clone()],
        new_versions: vec![before, stage.written.clone()],
        has_new_version: ["snapshot", "rollback"].contains(&scenario.kinds[0]),
        // What it holds is in its layers by now.
        counts_preserved: scenario.act != Act::RestoreByName,
        ..in_between(stage, scenario, name)
    };
    stage.compare_contents(&expected).await
}

async fn keeps_what_was_written(stage: &Stage, scenario: &Scenario, name: &str) -> Tried<()> {
    if !scenario.from.has_bytes() || !scenario.to.has_bytes() {
        return Ok(());
    }
    stage.compare_contents(&in_between(stage, scenario, name)).await
}

/// What was there before, or after.
fn in_between(stage: &Stage, scenario: &Scenario, name: &str) -> Expected {
    let states = vec![stage.written.clone(), after(stage, scenario, name)];
    Expected {
        presents: states.clone(),
        new_versions: states,
        has_new_version: false,
        keeps_versions: scenario.to.has_versions(),
        counts_preserved: true,
        only_data: !scenario.to.has_data(),
    }
}

/// What the workspace holds when what was there before was acted on.
fn after(stage: &Stage, scenario: &Scenario, name: &str) -> Vec<Written> {
    let mut written = stage.written.clone();
    match scenario.act {
        Act::Import => written.push(Written::imported(name)),
        _ if scenario.kinds == ["rollback"] => written = stage.versions[&1].clone(),
        _ => {}
    }
    written
}

/// A bot that `POST /bots` made before its server died is found by its name, and there is only one.
async fn find_new_bot(stage: &mut Stage, scenario: &Scenario, name: &str) -> Tried<()> {
    if !scenario.act.makes_a_bot() {
        return Ok(());
    }
    let client = stage.installation.client.clone();
    let listed = client
        .good(reqwest::Method::GET, "/bots?all=true&limit=200", None)
        .await;
    let items = listed["items"].as_array().expect("a list");
    let named: Vec<&str> = items
        .iter()
        .filter(|bot| bot["display_name"] == name)
        .filter_map(|bot| bot["id"].as_str())
        .collect();
    match named[..] {
        [] => Ok(()),
        [bot] => {
            stage.take_up(bot);
            Ok(())
        }
        _ => Err(format!("there are {} bots of that name", named.len()).into()),
    }
}

async fn last_operation_was_cancelled(stage: &Stage, scenario: &Scenario) -> bool {
    let Some(subject) = &stage.subject else { return false };
    let bot: BotId = subject.bot.parse().expect("an id of ours");
    let operations = stage.store().operations(&bot, 20).await.expect("the store can be read");
    let last = operations
        .iter()
        .find(|row| scenario.kinds.contains(&row.kind.as_str()));
    last.is_some_and(|row| row.state == OperationState::Cancelled)
}

async fn last_operation_succeeded(stage: &Stage, scenario: &Scenario) -> Tried<()> {
    let bot: BotId = match &stage.subject {
        Some(subject) => subject.bot.parse().expect("an id of ours"),
        None => return Ok(()),
    };
    let operations = stage.store().operations(&bot, 20).await.expect("the store can be read");
    let last = operations
        .iter()
        .find(|row| scenario.kinds.contains(&row.kind.as_str()));
    match last {
        Some(row) if row.state == OperationState::Succeeded => Ok(()),
        other => Err(format!("its operation ended otherwise: {other:?}").into()),
    }
}

/// Whether an answer, and the operation it began, are those of a success.
async fn succeeded(stage: &Stage, scenario: &Scenario, came: &Came) -> Tried<()> {
    let Came::Answered(status, body, operation) = came else {
        return Err("the server died".to_owned().into());
    };
    if !status.is_success() {
        return Err(format!("it answered {status}: {body}").into());
    }
    let Some(id) = operation else {
        return Ok(());
    };
    let row = stage.store().operation(id).await.expect("the store can be read");
    match row {
        Some(row) if row.state == OperationState::Succeeded => Ok(()),
        // Whoever asks for what is under way joins it.
        other => Err(format!("the operation of {} ended otherwise: {other:?}", scenario.name).into()),
    }
}

/// A request that is under way.
struct Asked {
    /// The point that is armed ends the server.
    dies: bool,
    request: Option<tokio::task::JoinHandle<Option<Answer>>>,
}

async fn ask(stage: &Stage, act: Act, name: &str, key: &str) -> Asked {
    let Some((method, path, body)) = act.request(stage, name) else {
        let bot = stage.subject.as_ref().map(|subject| subject.bot.as_str());
        let process = stage.first_process(bot.expect("there is a workspace")).await;
        let process = rustix::process::Pid::from_raw(i32::try_from(process).expect("a process")).expect("a process");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it can be killed");
        return Asked {
            dies: stage.is_armed_to_abort(),
            request: None,
        };
    };
    let request = stage.installation.client.request(method, &path);
    // A name of its own for each trial: the key of an earlier one is another request's.
    let request = request
        .header("accept", "application/json")
        .header("idempotency-key", format!("{key} {name}"));
    let request = match (body, act) {
        (Some(body), _) => request.json(&body),
        (None, Act::Import) => request.body(archive_of(name)),
        (None, _) => request,
    };
    let request = tokio::spawn(async move {
        let answer = request.send().await.ok()?;
        let operation = answer.headers().get("x-operation-id").cloned();
        let operation = operation.and_then(|id| id.to_str().map(str::to_owned).ok());
        let status = answer.status();
        let body = answer.bytes().await.ok()?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Some((status, body, operation))
    });
    Asked {
        dies: stage.is_armed_to_abort(),
        request: Some(request),
    }
}

impl Asked {
    /// The end of the server, or of the request and what it began, whatever comes first.
    async fn end(mut self, stage: &mut Stage) -> Tried<Came> {
        let deadline = Instant::now() + converge_limit();
        let mut over_since = None;
        let mut answer = None;
        // A connection that broke: the server's end will be seen in a moment.
        let mut cut_off = false;
        loop {
            if stage.installation.server_end().is_some() {
                return Ok(Came::Died);
            }
            if self.request.as_ref().is_some_and(tokio::task::JoinHandle::is_finished)
                && let Some(request) = self.request.take()
            {
                answer = request.await.map_err(|error| Failure::from(error.to_string()))?;
                cut_off = answer.is_none();
            }
            // Read in this order: what fires says so before it is disarmed. One that aborts is gone in a moment.
            let armed = !stage.is_disarmed();
            let dying = self.dies && stage.has_fired();
            let waited_for =
                cut_off || dying || self.request.is_some() || self.is_under_way(stage, answer.as_ref()).await;
            if !waited_for {
                let over = *over_since.get_or_insert_with(Instant::now);
                if !armed || over.elapsed() > TOO_LATE {
                    let (status, body, operation) = answer.unwrap_or((StatusCode::OK, Value::Null, None));
                    return Ok(Came::Answered(status, body, operation));
                }
            }
            if Instant::now() > deadline {
                return Err(format!("it did not come to an end; passed were {:?}", stage.passed()).into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// An operation says that it has ended after it is journaled, which is the last point it passes.
    async fn is_under_way(&self, stage: &Stage, answer: Option<&Answer>) -> bool {
        let unfinished = stage
            .store()
            .unfinished_operations()
            .await
            .expect("the store can be read");
        if !unfinished.is_empty() {
            return true;
        }
        let passed = stage.passed();
        let count = |mark: &str| passed.iter().filter(|line| line.starts_with(mark)).count();
        if count("operation.admitted") == 0 && answer.is_none() {
            // A process was killed and nobody has seen it.
            return true;
        }
        count("operation.ended") < count("operation.journaled")
    }
}
