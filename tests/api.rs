//! The API as a client sees it: the real server and the real client on a socket, over containers that exist
//! in memory only. Needs no root.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit::api::types::*;
use godwit::api::{Client, ClientError, server};
use godwit::daemon::backend::Say;
use godwit::daemon::facts::{self, CriuFacts, MemoryFacts};
use godwit::daemon::locks::Locks;
use godwit::daemon::{Backend, Bundles, Containers, Daemon, DaemonError, Events};
use godwit::model::*;
use godwit::oci::OciError;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Containers that are values.
struct Fake {
    dir: PathBuf,
    all: Mutex<BTreeMap<Name, ContainerStatus>>,
    /// Those that are not to run.
    stopped: Mutex<BTreeSet<Name>>,
    /// How long each start takes.
    slow: Duration,
}

impl Fake {
    fn change<T>(
        &self,
        name: &Name,
        change: impl FnOnce(&mut ContainerStatus) -> T,
    ) -> Result<T, DaemonError> {
        let mut all = self.all.lock().unwrap();
        let absent = || DaemonError::NoSuchContainer { name: name.clone() };
        all.get_mut(name).map(change).ok_or_else(absent)
    }
}

impl Backend for Fake {
    fn list(&self) -> Result<Vec<ContainerStatus>, DaemonError> {
        Ok(self.all.lock().unwrap().values().cloned().collect())
    }
    fn status(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        self.change(name, |status| status.clone())
    }
    fn create(&self, request: &CreateRequest, say: Say<'_>) -> Result<(), DaemonError> {
        say("made of nothing");
        let address = request.ip.unwrap_or(Ipv4Addr::new(10, 87, 0, 16));
        let status = ContainerStatus {
            spec: ContainerSpec {
                name: request.name.clone(),
                template: request
                    .template
                    .as_ref()
                    .map_or(String::new(), Name::to_string),
                image: Digest([1; 32]),
                command: request
                    .command
                    .clone()
                    .unwrap_or_else(|| vec!["true".to_owned()]),
                env: request.env.clone(),
                cwd: "/".into(),
                user: User {
                    uid: 0,
                    gid: 0,
                    groups: vec![],
                },
                ports: vec![],
                limits: request.limits.clone(),
                restart: request.restart.unwrap_or_default(),
                userns: godwit::model::Userns::Host,
                lease: Lease {
                    address,
                    prefix: 24,
                    gateway: None,
                    mac: Mac::of(address),
                },
                bundle: None,
            },
            state: if request.start {
                ContainerState::Running
            } else {
                ContainerState::Created
            },
            generation: Generation(0),
            pid: None,
            created_at: 1,
            exit_code: None,
            why: None,
            restarts: 0,
            migration: None,
        };
        self.all
            .lock()
            .unwrap()
            .insert(request.name.clone(), status);
        Ok(())
    }
    fn start(&self, name: &Name) -> Result<(), DaemonError> {
        std::thread::sleep(self.slow);
        self.change(name, |status| status.state = ContainerState::Running)
    }
    fn stop(&self, name: &Name) -> Result<(), DaemonError> {
        self.stopped.lock().unwrap().insert(name.clone());
        if self.status(name)?.state == ContainerState::Running {
            self.kill(name, libc::SIGTERM, false)?;
        }
        Ok(())
    }
    fn restart_after(&self, name: &Name) -> Result<Option<Duration>, DaemonError> {
        let status = self.status(name)?;
        let again = status.spec.restart == Restart::Always
            && status.state == ContainerState::Stopped
            && !self.stopped.lock().unwrap().contains(name);
        Ok(again.then_some(Duration::from_millis(20)))
    }
    fn restart(&self, name: &Name) -> Result<(), DaemonError> {
        self.change(name, |status| {
            status.state = ContainerState::Running;
            status.restarts += 1;
        })
    }
    fn kill(&self, name: &Name, signal: i32, _: bool) -> Result<(), DaemonError> {
        self.change(name, |status| {
            status.state = ContainerState::Stopped;
            status.exit_code = Some(128 + signal);
        })
    }
    fn delete(&self, name: &Name, _: bool) -> Result<(), DaemonError> {
        self.all.lock().unwrap().remove(name);
        Ok(())
    }
    fn exec(&self, _: &Name, request: &ExecRequest) -> Result<Child, DaemonError> {
        Command::new(&request.command[0])
            .args(&request.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| DaemonError::Io {
                what: "exec".to_owned(),
                source,
            })
    }
    fn usage(&self, name: Option<&Name>) -> Result<Vec<Usage>, DaemonError> {
        let why = || "the fake has none".to_owned();
        let usage = |status: ContainerStatus| Usage {
            name: status.spec.name,
            state: status.state,
            at_us: 1,
            cpu: Reading::Value(CpuUsage {
                total_us: 2_000_000,
                ..CpuUsage::default()
            }),
            memory: Reading::Missing { missing: why() },
            pids: Reading::Missing { missing: why() },
            io: Reading::Missing { missing: why() },
            pressure: Pressures {
                cpu: Reading::Missing { missing: why() },
                memory: Reading::Missing { missing: why() },
                io: Reading::Missing { missing: why() },
            },
        };
        let all = match name {
            Some(name) => vec![self.status(name)?],
            None => self.list()?,
        };
        Ok(all.into_iter().map(usage).collect())
    }
    fn ps(&self, _: &Name) -> Result<Vec<Process>, DaemonError> {
        Ok(vec![])
    }
    fn log(&self, name: &Name) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
    fn wait(&self, name: &Name, _: Duration) -> Result<bool, DaemonError> {
        std::thread::sleep(Duration::from_millis(10));
        Ok(self.status(name)?.state == ContainerState::Stopped)
    }
    fn tend(&self, _: &Name) -> Result<(), DaemonError> {
        Ok(())
    }
    fn settle(&self, name: &Name) -> Result<bool, DaemonError> {
        Ok(self.status(name)?.state == ContainerState::Stopped)
    }
    fn forget(&self, name: &Name) -> Result<(), DaemonError> {
        Err(DaemonError::NoSuchContainer { name: name.clone() })
    }
    fn templates(&self) -> Result<Vec<TemplateInfo>, DaemonError> {
        Ok(vec![TemplateInfo {
            name: "busybox".parse().unwrap(),
            rootfs: String::new(),
            command: vec![],
            ports: vec![],
            image: None,
            problem: None,
        }])
    }
    fn build(&self, template: &Name, say: Say<'_>) -> Result<Digest, DaemonError> {
        if template.as_str() != "busybox" {
            return Err(DaemonError::Template(OciError::NoTemplate {
                name: template.to_string(),
                directory: self.dir.clone(),
                known: "busybox".to_owned(),
            }));
        }
        say("one");
        say("two");
        Ok(Digest([1; 32]))
    }
    fn leases(&self) -> Result<Vec<LeaseInfo>, DaemonError> {
        Ok(vec![])
    }
    fn ports(&self) -> Result<Vec<PortInfo>, DaemonError> {
        Ok(vec![])
    }
    fn make_port(&self, request: &PortRequest) -> Result<PortInfo, DaemonError> {
        Err(DaemonError::NameTaken {
            name: request.name.clone(),
        })
    }
    fn remove_port(&self, _: &Name) -> Result<(), DaemonError> {
        Ok(())
    }
}

/// A served daemon, and what is needed to talk to it.
struct Served {
    client: Client,
    socket: PathBuf,
    dir: tempfile::TempDir,
    events: Events,
    fake: Arc<Fake>,
    stopping: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

fn given_a_daemon() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let events = Events::new();
    let fake = Arc::new(Fake {
        dir: dir.path().to_owned(),
        all: Mutex::default(),
        stopped: Mutex::default(),
        slow: Duration::from_millis(100),
    });
    let stopping = CancellationToken::new();
    let daemon = Daemon {
        facts: facts::gather(
            &"alpha".parse().unwrap(),
            CriuFacts::default(),
            MemoryFacts::default(),
            godwit::model::Ability::default(),
        )
        .unwrap(),
        containers: Containers::new(fake.clone(), Arc::new(Locks::default()), events.clone()),
        bundles: Bundles::of(dir.path()).unwrap(),
        events: events.clone(),
        outside: None,
        stopping: stopping.clone(),
    };
    let socket = dir.path().join("api.sock");
    let listener = server::listen(&socket).unwrap();
    let metrics = server::count(&daemon);
    let server = tokio::spawn(server::serve(listener, Arc::new(daemon), metrics));
    let client = Client::new(&socket);
    Served {
        client,
        socket,
        dir,
        events,
        fake,
        stopping,
        server,
    }
}

impl Served {
    async fn create(&self, name: &str, start: bool) -> ContainerStatus {
        let body = json!({"name": name, "template": "busybox", "start": start});
        self.client.post("/v1/containers", &body).await.unwrap()
    }

    async fn state(&self, name: &str) -> ContainerState {
        let path = format!("/v1/containers/{name}");
        self.client
            .get::<ContainerStatus>(&path)
            .await
            .unwrap()
            .state
    }
}

#[track_caller]
fn check_refused<T: std::fmt::Debug>(result: Result<T, ClientError>, code: &str) -> ApiError {
    match result {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.code, code, "{error:?}");
            assert!(!error.message.is_empty());
            error
        }
        other => panic!("{code} was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn what_containers_use_is_told_as_json_and_for_prometheus() {
    let served = given_a_daemon();
    served.create("web", true).await;
    served.create("idle", false).await;
    let all: Vec<Usage> = served.client.get("/v1/stats").await.unwrap();
    let names: Vec<&str> = all.iter().map(|usage| usage.name.as_str()).collect();
    assert_eq!(names, ["idle", "web"]);
    let one: Vec<Usage> = served.client.get("/v1/containers/web/stats").await.unwrap();
    assert_eq!(one[0].cpu.value().unwrap().total_us, 2_000_000);
    let absent = served
        .client
        .get::<Vec<Usage>>("/v1/containers/none/stats")
        .await;
    check_refused(absent, "no-such-container");

    let answer = raw(
        &served.socket,
        "GET /v1/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    for line in [
        "godwit_containers{state=\"running\"} 1",
        "godwit_containers{state=\"created\"} 1",
        "godwit_container_cpu_seconds_total{container=\"web\"} 2.0",
    ] {
        assert!(answer.contains(line), "{line} is missing in {answer}");
    }
}

async fn raw(socket: &Path, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The first bytes of the answer: some answers go on for ever.
async fn first_of(socket: &Path, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_tells_of_is_served() {
    let served = given_a_daemon();
    let document: serde_json::Value = served.client.get("/v1/openapi.json").await.unwrap();
    assert_eq!(document, godwit::api::openapi::document());
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "none").replace("{id}", "none");
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let answer = first_of(&served.socket, &request).await;
            assert!(answer.starts_with("HTTP/1.1 "), "{method} {path}: {answer}");
            for nothing in ["no-such-path", "no-such-method"] {
                assert!(!answer.contains(nothing), "{method} {path}: {answer}");
            }
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_started_again_unless_it_was_stopped() {
    let served = given_a_daemon();
    let body = json!({"name": "web", "template": "busybox", "start": true, "restart": "always"});
    let made: ContainerStatus = served.client.post("/v1/containers", &body).await.unwrap();
    assert_eq!(made.spec.restart, Restart::Always);
    let kill = json!({"signal": "KILL"});
    served
        .client
        .tell("/v1/containers/web/kill", &kill)
        .await
        .unwrap();
    let restarts = async || {
        let status: ContainerStatus = served.client.get("/v1/containers/web").await.unwrap();
        (status.state, status.restarts)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while restarts().await != (ContainerState::Running, 1) {
        assert!(Instant::now() < deadline, "{:?}", restarts().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stopped: ContainerStatus = served
        .client
        .post("/v1/containers/web/stop", &json!({}))
        .await
        .unwrap();
    assert_eq!(stopped.state, ContainerState::Stopped);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(restarts().await, (ContainerState::Stopped, 1));

    let wrong = json!({"name": "two", "template": "busybox", "restart": "sometimes"});
    let refused = served
        .client
        .post::<ContainerStatus>("/v1/containers", &wrong)
        .await;
    let error = check_refused(refused, "bad-field");
    assert_eq!(error.field.as_deref(), Some("restart"));
}

#[tokio::test]
async fn a_container_is_stopped_and_stays_so() {
    let served = given_a_daemon();
    served.create("web", true).await;
    let stop = |body: serde_json::Value| {
        let client = &served.client;
        async move {
            client
                .post::<ContainerStatus>("/v1/containers/web/stop", &body)
                .await
        }
    };
    let stopped = stop(json!({})).await.unwrap();
    assert_eq!(stopped.state, ContainerState::Stopped);
    assert_eq!(stopped.exit_code, Some(128 + 15));
    // Again: that is how it shall be.
    assert!(stop(json!({"patience_ms": 1})).await.is_ok());
    let error = check_refused(stop(json!({"patience_ms": 3_600_001})).await, "bad-field");
    assert_eq!(error.field.as_deref(), Some("patience_ms"));
    served.create("new", false).await;
    let empty = json!({});
    let created = served
        .client
        .post::<ContainerStatus>("/v1/containers/new/stop", &empty);
    check_refused(created.await, "not-running");
}

#[tokio::test]
async fn a_container_lives_from_create_to_delete() {
    let served = given_a_daemon();
    let mut heard = served
        .client
        .lines::<EventLine>("/v1/events")
        .await
        .unwrap();
    let made = served.create("web", false).await;
    assert_eq!(made.state, ContainerState::Created);
    let started: ContainerStatus = served
        .client
        .post("/v1/containers/web/start", &())
        .await
        .unwrap();
    assert_eq!(started.state, ContainerState::Running);
    served
        .client
        .tell("/v1/containers/web/kill", &json!({"signal": "TERM"}))
        .await
        .unwrap();
    assert_eq!(served.state("web").await, ContainerState::Stopped);
    let all: Vec<ContainerStatus> = served.client.get("/v1/containers").await.unwrap();
    assert_eq!(all[0].exit_code, Some(143));

    let mut states = Vec::new();
    while states.last() != Some(&ContainerState::Stopped) {
        let line = heard.next().await.unwrap().unwrap();
        let EventLine::Event(event) = line else {
            panic!("{line:?}")
        };
        let EventKind::Container { state, .. } = event.kind else {
            panic!("{event:?}")
        };
        states.push(state);
    }
    use ContainerState::{Created, Running, Stopped};
    assert_eq!(states, [Created, Running, Stopped]);

    served.client.delete("/v1/containers/web").await.unwrap();
    let line = heard.next().await.unwrap().unwrap();
    assert!(matches!(line, EventLine::Event(e) if matches!(e.kind, EventKind::Removed { .. })));
    check_refused(
        served
            .client
            .get::<ContainerStatus>("/v1/containers/web")
            .await,
        "no-such-container",
    );
}

#[tokio::test]
async fn containers_of_bundles_are_shown() {
    let served = given_a_daemon();
    let none: Vec<Bundle> = served.client.get("/v1/bundles").await.unwrap();
    assert_eq!(none, []);
    let home = served.dir.path().join("oci/web_1");
    std::fs::create_dir_all(&home).unwrap();
    let record = json!({
        "id": "web_1", "init": {"pid": 0, "start_time": 0}, "ready": true,
        "bundle": "/srv/web", "rootfs": "/srv/web/rootfs", "created": "2026-01-02T03:04:05Z",
        "cgroup": "/sys/fs/cgroup/none", "systemd": false,
        "spec": {
            "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "annotations": {"a": "b"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sleep", "9"], "cwd": "/"},
        },
    });
    std::fs::write(home.join("state.json"), record.to_string()).unwrap();
    // One that is being deleted, and one whose record is broken, hide no other.
    std::fs::create_dir(served.dir.path().join("oci/gone")).unwrap();
    std::fs::create_dir(served.dir.path().join("oci/broken")).unwrap();
    std::fs::write(served.dir.path().join("oci/broken/state.json"), "{").unwrap();
    let all: Vec<Bundle> = served.client.get("/v1/bundles").await.unwrap();
    let [web] = &all[..] else { panic!("{all:?}") };
    assert_eq!((web.status.as_str(), web.pid), ("stopped", None));
    assert_eq!(web.command, ["sleep", "9"]);
    assert_eq!(web.annotations["a"], "b");
    let one: Bundle = served.client.get("/v1/bundles/web_1").await.unwrap();
    assert_eq!(one, *web);
    for missing in ["/v1/bundles/gone", "/v1/bundles/other", "/v1/bundles/%20"] {
        check_refused(
            served.client.get::<Bundle>(missing).await,
            "no-such-container",
        );
    }
}

#[tokio::test]
async fn what_a_state_does_not_allow_is_refused_with_a_remedy() {
    let served = given_a_daemon();
    served.create("web", true).await;
    let body = json!({"name": "web", "template": "busybox"});
    let error = check_refused(
        served
            .client
            .post::<ContainerStatus>("/v1/containers", &body)
            .await,
        "name-in-use",
    );
    assert_eq!(error.field.as_deref(), Some("name"));
    let error = check_refused(served.client.delete("/v1/containers/web").await, "running");
    assert!(error.remedy.unwrap().contains("--force"));
    let start = served
        .client
        .post::<ContainerStatus>("/v1/containers/web/start", &());
    check_refused(start.await, "already-running");
    served
        .client
        .delete("/v1/containers/web?force=true")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_migrating_container_is_left_alone() {
    let served = given_a_daemon();
    let name = served.create("web", true).await.spec.name;
    let migration = Some(MigrationId([3; 8]));
    served
        .fake
        .change(&name, |status| {
            status.state = ContainerState::Migrating;
            status.migration = migration;
        })
        .unwrap();
    let kill = served
        .client
        .tell("/v1/containers/web/kill", &json!({"signal": "KILL"}))
        .await;
    let error = check_refused(kill, "migrating");
    assert!(error.remedy.unwrap().contains("cancel 0303030303030303"));
    check_refused(
        served.client.delete("/v1/containers/web?force=true").await,
        "migrating",
    );
    assert_eq!(served.state("web").await, ContainerState::Migrating);
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused_without_naming_a_field() {
    let served = given_a_daemon();
    let made = served.client.post::<()>("/v1/containers", &"text").await;
    assert_eq!(check_refused(made, "bad-field").field, None);
}

#[tokio::test]
async fn bad_input_is_refused_and_the_field_named() {
    let served = given_a_daemon();
    served.create("web", true).await;
    let kill = served
        .client
        .tell("/v1/containers/web/kill", &json!({"signal": "NONE"}))
        .await;
    check_refused(kill, "bad-field");
    served
        .client
        .delete("/v1/containers/web?force=true")
        .await
        .unwrap();
    for (body, code, field) in [
        (
            json!({"name": "UPPER", "template": "busybox"}),
            "bad-field",
            "name",
        ),
        (
            json!({"name": "a", "template": "busybox", "colour": 1}),
            "bad-field",
            "colour",
        ),
        (json!({"name": "a"}), "bad-field", "template"),
        (
            json!({"name": "a", "template": "busybox", "image": "00".repeat(32)}),
            "bad-field",
            "image",
        ),
        (
            json!({"name": "a", "image": "00".repeat(32)}),
            "bad-field",
            "command",
        ),
        (
            json!({"name": "a", "template": "busybox", "command": []}),
            "bad-field",
            "command",
        ),
        (
            json!({"name": "a", "template": "busybox", "env": ["novalue"]}),
            "bad-field",
            "env",
        ),
        (
            json!({"name": "a", "template": "busybox", "ip": "10.0.0"}),
            "bad-field",
            "ip",
        ),
    ] {
        let made = served
            .client
            .post::<ContainerStatus>("/v1/containers", &body)
            .await;
        let error = check_refused(made, code);
        assert_eq!(error.field.as_deref(), Some(field), "{body}");
    }
    let long = json!({"name": "a", "template": "busybox", "env": ["A=".to_owned() + &"x".repeat(1 << 20)]});
    let made = served
        .client
        .post::<ContainerStatus>("/v1/containers", &long)
        .await;
    check_refused(made, "body-too-long");
    let all: Vec<ContainerStatus> = served.client.get("/v1/containers").await.unwrap();
    assert!(all.is_empty());
}

#[tokio::test]
async fn an_option_that_no_migration_can_follow_is_named() {
    let served = given_a_daemon();
    for (options, field) in [
        (json!({"tracker": "fast"}), "options.tracker"),
        (json!({"compress": "20"}), "options.compress"),
        (json!({"streams": 4}), "options.streams"),
        (json!({"bandwidth": 1}), "options.bandwidth"),
        (json!({"timeout_ms": 0}), "options.timeout_ms"),
        (
            json!({"restore": "eager", "on_no_convergence": "post-copy"}),
            "options.on_no_convergence",
        ),
    ] {
        let path = "/v1/containers/a/migrate";
        let body = json!({"to": "beta", "options": options});
        let asked = served.client.post::<MigrateAnswer>(path, &body).await;
        let error = check_refused(asked, "bad-field");
        assert_eq!(error.field.as_deref(), Some(field), "{options}");
    }
}

#[tokio::test]
async fn a_path_or_method_that_is_not_there_is_answered_like_any_failure() {
    let served = given_a_daemon();
    check_refused(served.client.get::<()>("/v1/nothing").await, "no-such-path");
    check_refused(
        served.client.get::<()>("/v2/containers").await,
        "no-such-path",
    );
    check_refused(served.client.delete("/v1/host").await, "no-such-method");
    check_refused(
        served.client.get::<()>("/v1/containers/NO").await,
        "bad-path",
    );
    check_refused(
        served.client.delete("/v1/containers/a?fast=true").await,
        "bad-query",
    );
    check_refused(
        served
            .client
            .get::<Vec<MigrationStatus>>("/v1/migrations")
            .await,
        "no-peers",
    );
    let facts: HostFacts = served.client.get("/v1/host").await.unwrap();
    assert_eq!(facts.name.as_str(), "alpha");
}

#[tokio::test]
async fn a_command_sends_both_outputs_and_its_exit_code() {
    let served = given_a_daemon();
    served.create("web", true).await;
    let body = json!({"command": ["sh", "-c", "echo out; echo err >&2; exit 7"]});
    let mut lines = served
        .client
        .post_lines::<ExecLine>("/v1/containers/web/exec", &body)
        .await
        .unwrap();
    let (mut out, mut err, mut exit) = (0, 0, None);
    while let Some(line) = lines.next().await.unwrap() {
        match line {
            ExecLine::Output {
                stream: Output::Stdout,
                data,
            } => out += usize::from(data == "b3V0Cg=="),
            ExecLine::Output {
                stream: Output::Stderr,
                data,
            } => err += usize::from(data == "ZXJyCg=="),
            ExecLine::Exit { exit: code } => exit = Some(code),
            ExecLine::Failed { error } => panic!("{error}"),
        }
    }
    assert_eq!((out, err, exit), (1, 1, Some(7)));
}

#[tokio::test]
async fn a_command_whose_client_has_gone_is_killed() {
    let served = given_a_daemon();
    served.create("web", true).await;
    let mark = served.dir.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", mark.display());
    let body = json!({"command": ["sh", "-c", script]});
    let lines = served
        .client
        .post_lines::<ExecLine>("/v1/containers/web/exec", &body)
        .await
        .unwrap();
    let pid = until(|| {
        std::fs::read_to_string(&mark)
            .ok()
            .filter(|text| text.ends_with('\n'))
    })
    .await;
    drop(lines);
    let proc = Path::new("/proc").join(pid.trim());
    until(|| (!proc.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_followed_log_ends_with_the_container() {
    let served = given_a_daemon();
    let name = served.create("web", true).await.spec.name;
    let log = served.fake.log(&name);
    std::fs::write(&log, b"t0 stdout F one\nt1 stderr F \xff\n").unwrap();
    let path = "/v1/containers/web/logs";
    let mut whole = served.client.lines::<LogLine>(path).await.unwrap();
    let first = whole.next().await.unwrap().unwrap();
    assert_eq!(
        (first.at.as_str(), first.text.as_deref()),
        ("t0", Some("one"))
    );
    let second = whole.next().await.unwrap().unwrap();
    assert_eq!(
        (second.stream, second.data.as_deref()),
        (Output::Stderr, Some("/w=="))
    );
    assert!(whole.next().await.unwrap().is_none());

    let path = "/v1/containers/web/logs?follow=true&tail=1";
    let mut tail = served.client.lines::<LogLine>(path).await.unwrap();
    assert_eq!(tail.next().await.unwrap().unwrap().at, "t1");
    std::fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"t2 stdout F three\n"))
        .unwrap();
    assert_eq!(tail.next().await.unwrap().unwrap().at, "t2");
    served
        .client
        .tell("/v1/containers/web/kill", &json!({"signal": "9"}))
        .await
        .unwrap();
    assert!(tail.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_build_tells_its_steps_and_its_image() {
    let served = given_a_daemon();
    let mut lines = served
        .client
        .post_lines::<BuildLine>("/v1/templates/busybox/build", &())
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        all.push(line);
    }
    let step = |text: &str| BuildLine::Step(text.to_owned());
    assert_eq!(
        all,
        [step("one"), step("two"), BuildLine::Image(Digest([1; 32]))]
    );
    let build = served
        .client
        .post_lines::<BuildLine>("/v1/templates/none/build", &())
        .await;
    check_refused(build.map(drop), "no-such-template");
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_take_the_lock_from_the_work() {
    let served = given_a_daemon();
    served.create("web", false).await;
    let start = served
        .client
        .post::<ContainerStatus>("/v1/containers/web/start", &());
    assert!(
        tokio::time::timeout(Duration::from_millis(30), start)
            .await
            .is_err()
    );
    // The start goes on; this request waits for it and finds the container running.
    let begin = Instant::now();
    let error = check_refused(served.client.delete("/v1/containers/web").await, "running");
    assert!(begin.elapsed() > Duration::from_millis(30), "{error:?}");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_a_dead_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let served = given_a_daemon();
    let mode = std::fs::metadata(&served.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    served.stopping.cancel();
    served.server.await.unwrap().unwrap();
    let get = served.client.get::<HostFacts>("/v1/host").await;
    assert!(matches!(get, Err(ClientError::Connect { .. })), "{get:?}");
    assert!(server::listen(&served.socket).is_ok());
}

#[tokio::test]
async fn a_stream_ends_when_the_daemon_does() {
    let served = given_a_daemon();
    let mut heard = served
        .client
        .lines::<EventLine>("/v1/events")
        .await
        .unwrap();
    served
        .events
        .container(&"web".parse().unwrap(), ContainerState::Running);
    assert!(heard.next().await.unwrap().is_some());
    served.stopping.cancel();
    assert!(heard.next().await.unwrap().is_none());
    tokio::time::timeout(Duration::from_secs(5), served.server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(value) = found() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within five seconds");
}
