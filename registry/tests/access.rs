//! Who may do what, over HTTP: every route for every kind of caller, logins and tokens, taking rights away, and what other
//! registries got wrong (named with its CVE).

mod common;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::{Sample, TestRegistry};
use layer_format::Digest;
use layer_format::api::encode_digests;
use registry::{Config, LoginLimit};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::Digest as _;
use tempfile::TempDir;

const PASSWORD: &str = "correct horse";

/// With what a request is authorised.
#[derive(Clone, Debug)]
enum Auth {
    None,
    Basic(String, String),
    Bearer(String),
}

fn basic(name: &str) -> Auth {
    Auth::Basic(name.into(), PASSWORD.into())
}

fn bearer(text: &Value) -> Auth {
    Auth::Bearer(text.as_str().unwrap().into())
}

struct Server {
    registry: TestRegistry,
    admin: Auth,
    data: TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::new(data.path());
        config.auth = Some(true);
        change(&mut config);
        let registry = TestRegistry::with_config(config).await;
        let password = std::fs::read_to_string(data.path().join("initial-admin-password")).unwrap();
        Self { registry, admin: Auth::Basic("admin".into(), password.trim().into()), data }
    }

    async fn send(&self, method: &str, path: &str, auth: &Auth, body: impl Into<reqwest::Body>) -> Response {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.registry.url) };
        let request = self.registry.client.request(method.parse().unwrap(), url).body(body);
        let request = match auth {
            Auth::None => request,
            Auth::Basic(name, password) => request.basic_auth(name, Some(password)),
            Auth::Bearer(token) => request.bearer_auth(token),
        };
        request.send().await.unwrap()
    }

    async fn status(&self, method: &str, path: &str, auth: &Auth) -> u16 {
        self.send(method, path, auth, "").await.status().as_u16()
    }

    async fn manage(&self, method: &str, path: &str, body: Value) -> Value {
        self.manage_as(&self.admin, method, path, body).await.unwrap_or_else(|(status, text)| panic!("{method} {path}: {status} {text}"))
    }

    async fn manage_as(&self, auth: &Auth, method: &str, path: &str, body: Value) -> Result<Value, (u16, String)> {
        let answer = self.send(method, path, auth, body.to_string()).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        if status.is_success() { Ok(serde_json::from_str(&text).unwrap()) } else { Err((status.as_u16(), text)) }
    }

    async fn user(&self, name: &str) -> Auth {
        self.manage("PUT", &format!("/v1/users/{name}"), json!({"password": PASSWORD})).await;
        basic(name)
    }

    async fn grant(&self, subject: &str, target: &str, rights: &str, deny: bool) {
        self.manage("PUT", "/v1/grants", json!({"subject": subject, "target": target, "rights": rights, "deny": deny})).await;
    }

    async fn key(&self, body: Value) -> Auth {
        bearer(&self.manage("POST", "/v1/keys", body).await["secret"])
    }

    async fn token(&self, auth: &Auth, query: &str) -> Value {
        let answer = self.send("GET", &format!("/auth/token?service=turbo-registry&{query}"), auth, "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        answer.json().await.unwrap()
    }

    /// Pushes a blob; returns its digest.
    async fn blob(&self, repository: &str, bytes: &[u8], auth: &Auth) -> String {
        let digest = sha256(bytes);
        let answer = self.send("POST", &format!("/v2/{repository}/blobs/uploads/?digest={digest}"), auth, bytes.to_vec()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        digest
    }

    /// Pushes an OCI image without layers under a tag; returns the digest of its manifest.
    async fn oci_image(&self, repository: &str, tag: &str, auth: &Auth) -> String {
        let config = self.blob(repository, b"{}", auth).await;
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [],
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2}});
        let answer = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), auth, manifest.to_string()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        sha256(manifest.to_string().as_bytes())
    }

    async fn push(&self, repository: &str, sample: &Sample) {
        let at = |path: String| format!("/v1/repositories/{repository}/-/{path}");
        let pack = sample.pack();
        let answer = self.send("PUT", &at(format!("packs/{}", Digest::of(&pack))), &self.admin, pack).await;
        assert!(answer.status().is_success());
        let answer = self.send("PUT", &at("manifests/1".into()), &self.admin, sample.image.clone()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }

    /// Audit entries, once the one of this request is there.
    async fn audit_with(&self, request: &str) -> Vec<Value> {
        for _ in 0..400 {
            let mut entries = Vec::new();
            let mut after = String::new();
            loop {
                let page: Value = self.send("GET", &format!("/v1/audit?after={after}"), &self.admin, "").await.json().await.unwrap();
                let page = page["entries"].as_array().unwrap().clone();
                let Some(last) = page.last() else { break };
                after = last["id"].as_str().unwrap().into();
                entries.extend(page);
            }
            if entries.iter().any(|entry| entry["request"] == request) {
                return entries;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("request {request} is not in the audit log");
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn request_id(answer: &Response) -> String {
    answer.headers()["x-request-id"].to_str().unwrap().to_owned()
}

async fn code(answer: Response) -> (u16, String) {
    common::code(answer).await
}

/// Every route of a repository, with the right that it needs: as the documentation says it.
fn routes() -> Vec<(&'static str, String, &'static str)> {
    let (b3, sha) = (Digest::of(b"nothing"), sha256(b"nothing"));
    let id = "0123456789abcdef0123456789abcdef";
    let native = |method, path: String, right| (method, format!("/v1/repositories/REPO/-/{path}"), right);
    let oci = |method, path: String, right| (method, format!("/v2/REPO/{path}"), right);
    vec![
        native("POST", "missing".into(), "push"),
        native("POST", "bases".into(), "push"),
        native("PUT", format!("packs/{b3}"), "push"),
        native("HEAD", format!("packs/{b3}"), "push"),
        native("PUT", "manifests/x".into(), "push"),
        native("GET", "manifests/1".into(), "pull"),
        native("DELETE", "manifests/x".into(), "delete"),
        native("GET", "tags".into(), "pull"),
        native("GET", "savings".into(), "pull"),
        native("PUT", format!("states/{}", b3.to_hex()), "push"),
        native("GET", "states/01234567".into(), "pull"),
        native("DELETE", "states/01234567".into(), "delete"),
        native("GET", "states".into(), "pull"),
        native("POST", "objects".into(), "pull"),
        native("POST", "deltas".into(), "pull"),
        native("GET", format!("objects/{b3}"), "pull"),
        native("POST", "launch/1".into(), "pull"),
        native("GET", "launch/1".into(), "pull"),
        native("POST", "traces".into(), "pull"),
        native("GET", "model".into(), "pull"),
        native("PUT", "model".into(), "push"),
        native("DELETE", "model".into(), "delete"),
        native("PUT", "pins/1".into(), "push"),
        native("DELETE", "pins/1".into(), "push"),
        oci("GET", format!("blobs/{sha}"), "pull"),
        oci("HEAD", format!("blobs/{sha}"), "pull"),
        oci("DELETE", format!("blobs/{sha}"), "delete"),
        oci("POST", "blobs/uploads/".into(), "push"),
        oci("GET", format!("blobs/uploads/{id}"), "push"),
        oci("PATCH", format!("blobs/uploads/{id}"), "push"),
        oci("PUT", format!("blobs/uploads/{id}?digest={sha}"), "push"),
        oci("DELETE", format!("blobs/uploads/{id}"), "push"),
        oci("GET", "manifests/x".into(), "pull"),
        oci("HEAD", format!("manifests/{sha}"), "pull"),
        oci("PUT", "manifests/x".into(), "push"),
        oci("DELETE", "manifests/x".into(), "delete"),
        oci("GET", "tags/list".into(), "pull"),
        oci("GET", format!("referrers/{sha}"), "pull"),
    ]
}

#[tokio::test]
async fn every_route_asks_for_its_right_of_every_caller() {
    let server = Server::start().await;
    server.push("tools/app", &Sample::generated(1, 2, 100)).await;
    let mut callers: Vec<(&str, Auth, &str)> = vec![("anonymous", Auth::None, ""), ("admin", server.admin.clone(), "pull,push,delete")];
    for (name, rights) in [("nobody", ""), ("reader", "pull"), ("writer", "push"), ("both", "pull,push"), ("cleaner", "delete"), ("chief", "admin")] {
        let auth = server.user(name).await;
        if !rights.is_empty() {
            server.grant(&format!("user:{name}"), "tools/app", rights, false).await;
        }
        callers.push((name, auth, if rights == "admin" { "pull,push,delete" } else { rights }));
    }
    // A denial wins over what is granted on more.
    let auth = server.user("banned").await;
    server.grant("user:banned", "tools/*", "pull,push,delete,admin", false).await;
    server.grant("user:banned", "tools/app", "push,delete", true).await;
    callers.push(("banned", auth, "pull"));
    callers.push(("key", server.key(json!({"name": "ci", "namespace": "tools", "scopes": [{"target": "tools/*", "rights": "pull,push"}]})).await, "pull,push"));
    callers.push(("other key", server.key(json!({"name": "cx", "namespace": "other", "scopes": [{"target": "*", "rights": "pull,push,delete"}]})).await, ""));
    let own = json!({"name": "cr", "owner": "reader", "scopes": [{"target": "*", "rights": "pull,push"}]});
    callers.push(("key of the reader", server.key(own).await, "pull"));
    // Except for those that must be refused for another reason, each caller is asked for everything.
    let (mut refused, mut allowed) = (HashMap::new(), HashSet::new());
    let mut last = String::new();
    for (name, auth, rights) in &callers {
        for (method, path, right) in routes() {
            let answer = server.send(method, &path.replace("REPO", "tools/app"), auth, "").await;
            let (status, id) = (answer.status(), request_id(&answer));
            let may = rights.split(',').any(|has| has == right);
            let what = format!("{name} {method} {path}: {status}");
            match *name {
                "anonymous" => {
                    assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
                    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
                    assert!(challenge.contains("Bearer realm=\"http://127.0.0.1:") && challenge.contains("scope=\"repository:tools/app:pull"), "{challenge}");
                }
                _ if may => {
                    assert!(status != StatusCode::FORBIDDEN && status != StatusCode::UNAUTHORIZED, "{what}");
                    allowed.insert(id);
                }
                // Who may read may know that it is there.
                _ if rights.split(',').any(|has| has == "pull") => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
                    refused.insert(id.clone(), what);
                    last = id;
                }
                _ => {
                    assert_eq!(status, StatusCode::NOT_FOUND, "{what}");
                    refused.insert(id.clone(), what);
                    last = id;
                }
            }
        }
    }
    let entries = server.audit_with(&last).await;
    let noted: HashSet<&str> = entries.iter().filter(|entry| entry["outcome"] == "refused").filter_map(|entry| entry["request"].as_str()).collect();
    for (id, what) in &refused {
        assert!(noted.contains(id.as_str()), "not noted as refused: {what}");
    }
    assert!(allowed.iter().all(|id| !noted.contains(id.as_str())), "what was allowed is noted as refused");
    assert!(refused.len() > 100 && allowed.len() > 100, "{} {}", refused.len(), allowed.len());
    server.registry.stop().await;
}

#[tokio::test]
async fn the_table_of_the_test_above_is_complete_and_unknown_routes_are_denied() {
    let server = Server::start().await;
    let document: Value = server.send("GET", "/openapi.json", &Auth::None, "").await.json().await.unwrap();
    let tested: HashSet<String> =
        routes().iter().map(|(method, path, _)| format!("{method} {}", path.split("/-/").last().unwrap().split('/').next().unwrap())).collect();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some((_, action)) = path.split_once("/-/") else { continue };
        let noun = action.split('/').next().unwrap();
        for method in methods.as_object().unwrap().keys() {
            // Lanes need a launch; their right is that of launches.
            assert!(noun == "lanes" || tested.contains(&format!("{} {noun}", method.to_uppercase())), "{method} {path} is not in the matrix");
        }
    }
    // The rest of the site: who may without credentials.
    for (method, path, expected) in [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/v1/capabilities", 200),
        ("GET", "/v1/whoami", 200),
        ("GET", "/metrics", 401),
        ("GET", "/v1/repositories", 401),
        ("GET", "/v1/users", 401),
        ("PUT", "/v1/users/x", 401),
        ("DELETE", "/v1/users/x", 401),
        ("PUT", "/v1/users/x/password", 401),
        ("GET", "/v1/keys", 401),
        ("POST", "/v1/keys", 401),
        ("DELETE", "/v1/keys/x", 401),
        ("GET", "/v1/grants", 401),
        ("PUT", "/v1/grants", 401),
        ("DELETE", "/v1/grants?subject=anonymous&target=*", 401),
        ("GET", "/v1/audit", 401),
        ("GET", "/v2/", 401),
        ("GET", "/v2/_catalog", 401),
        ("GET", "/auth/token", 401),
        ("GET", "/", 404),
        ("GET", "/admin", 404),
        ("GET", "/v1/secrets", 404),
        ("GET", "/v3/tools/app", 404),
    ] {
        assert_eq!(server.status(method, path, &Auth::None).await, expected, "{method} {path}");
    }
    let alice = server.user("alice").await;
    for (method, path) in [("GET", "/metrics"), ("GET", "/v1/users"), ("PUT", "/v1/users/x"), ("DELETE", "/v1/users/admin"), ("GET", "/v1/audit")] {
        let status = server.status(method, path, &alice).await;
        assert!(status == 403 || path == "/metrics" && status == 404, "{method} {path}: {status}");
    }
    server.grant("user:alice", "@metrics", "pull", false).await;
    assert_eq!(server.status("GET", "/metrics", &alice).await, 200);
    server.registry.stop().await;
}

#[tokio::test]
async fn absent_and_forbidden_answer_alike() {
    let server = Server::start().await;
    server.push("secret/there", &Sample::generated(1, 2, 100)).await;
    let blob = server.blob("secret/there", b"a blob", &server.admin).await;
    server.oci_image("secret/there", "1", &server.admin).await;
    let alice = server.user("alice").await;
    server.grant("user:alice", "mine/*", "pull,push", false).await;
    for path in [
        "/v1/repositories/REPO/-/tags".to_owned(),
        "/v1/repositories/REPO/-/manifests/1".into(),
        "/v1/repositories/REPO/-/launch/1".into(),
        "/v1/repositories/REPO/-/states".into(),
        "/v2/REPO/tags/list".into(),
        "/v2/REPO/manifests/1".into(),
        format!("/v2/REPO/blobs/{blob}"),
    ] {
        let mut answers = Vec::new();
        // There and forbidden; not there and forbidden; not there and allowed.
        for repository in ["secret/there", "secret/gone", "mine/gone"] {
            let answer = server.send("GET", &path.replace("REPO", repository), &alice, "").await;
            let headers: Vec<String> = answer.headers().keys().map(ToString::to_string).collect();
            answers.push((answer.status().as_u16(), headers, answer.text().await.unwrap()));
        }
        assert_eq!(answers[0], answers[1], "{path}");
        // What an allowed caller sees of nothing is the same, where it is an error.
        if path != "/v1/repositories/REPO/-/states" {
            assert_eq!(answers[0], answers[2], "{path}");
        }
        assert_eq!(answers[0].0, 404);
        let challenges: Vec<_> = [
            server.status("GET", &path.replace("REPO", "secret/there"), &Auth::None).await,
            server.status("GET", &path.replace("REPO", "secret/gone"), &Auth::None).await,
        ]
        .into();
        assert_eq!(challenges, [401, 401]);
    }
    server.registry.stop().await;
}

/// CVE-2024-39897: a blob was read through any repository, or mounted, since the store had it.
#[tokio::test]
async fn what_is_stored_grants_nothing() {
    let server = Server::start().await;
    let secret = server.blob("tools/secret", b"the secret blob", &server.admin).await;
    server.blob("tools/app", b"another", &server.admin).await;
    let alice = server.user("alice").await;
    server.grant("user:alice", "tools/app", "pull,push", false).await;
    for method in ["GET", "HEAD"] {
        assert_eq!(server.status(method, &format!("/v2/tools/app/blobs/{secret}"), &alice).await, 404);
        assert_eq!(server.status(method, &format!("/v2/alice/own/blobs/{secret}"), &alice).await, 404);
    }
    let mount = |to: &str, from: &str, digest: &str| format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
    let absent = sha256(b"not there");
    for to in ["tools/app", "alice/own"] {
        let mut answers = Vec::new();
        for (from, digest) in [("tools/secret", &secret), ("tools/secret", &absent), ("tools/gone", &secret), ("tools/app", &secret)] {
            let answer = server.send("POST", &mount(to, from, digest), &alice, "").await;
            assert_eq!(answer.status(), StatusCode::ACCEPTED, "{to} {from}");
            answers.push(answer.headers().keys().map(ToString::to_string).collect::<Vec<_>>());
        }
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
        assert_eq!(server.status("HEAD", &format!("/v2/{to}/blobs/{secret}"), &alice).await, 404);
    }
    // With the right to pull it is mounted; a limited token must have been issued for both.
    server.grant("user:alice", "tools/secret", "pull", false).await;
    let narrow = bearer(&server.token(&alice, "scope=repository:tools/app:pull,push").await["token"]);
    assert_eq!(server.status("POST", &mount("tools/app", "tools/secret", &secret), &narrow).await, 202);
    let wide = server.token(&alice, "scope=repository:tools/app:pull,push&scope=repository:tools/secret:pull").await;
    assert_eq!(server.status("POST", &mount("tools/app", "tools/secret", &secret), &bearer(&wide["token"])).await, 201);
    // CVE-2026-35172: what was deleted does not come back from a cache.
    assert_eq!(server.status("DELETE", &format!("/v2/tools/secret/blobs/{secret}"), &server.admin).await, 202);
    assert_eq!(server.status("HEAD", &format!("/v2/tools/secret/blobs/{secret}"), &alice).await, 404);
    assert_eq!(server.status("POST", &mount("alice/own", "tools/secret", &secret), &alice).await, 202);
    server.registry.stop().await;
}

#[tokio::test]
async fn objects_are_read_through_a_repository_that_needs_them() {
    let server = Server::start().await;
    let (own, secret) = (Sample::generated(1, 40, 40_000), Sample::generated(2, 40, 40_000));
    server.push("tools/app", &own).await;
    server.push("tools/secret", &secret).await;
    let alice = server.user("alice").await;
    server.grant("user:alice", "tools/app", "pull", false).await;
    let bob = server.user("bob").await;
    server.grant("user:bob", "tools/*", "pull", false).await;
    let digests: Vec<Digest> = own.digests().into_iter().chain(secret.digests()).collect();
    for query in ["", "?frames=1"] {
        for (auth, repository, visible) in [(&alice, "tools/app", own.digests()), (&bob, "tools/app", digests.clone()), (&bob, "tools/secret", digests.clone())]
        {
            let answer = server.send("POST", &format!("/v1/repositories/{repository}/-/objects{query}"), auth, encode_digests(&digests)).await;
            let stream = common::Stream::read(answer).await;
            let found: HashSet<Digest> = stream.objects.keys().copied().collect();
            assert_eq!(found, visible.into_iter().collect::<HashSet<_>>(), "{repository}{query}");
            assert_eq!(stream.missing().len(), digests.len() - found.len());
        }
    }
    let object = |digest: &Digest| format!("/v1/repositories/tools/app/-/objects/{digest}");
    for digest in [secret.layer, secret.root, secret.digests()[secret.objects.len() - 1]] {
        let hidden = code(server.send("GET", &object(&digest), &alice, "").await).await;
        assert_eq!(hidden, code(server.send("GET", &object(&Digest::of(b"nowhere")), &alice, "").await).await);
        assert_eq!(server.status("GET", &object(&digest), &bob).await, 200);
    }
    assert_eq!(server.status("GET", &object(&own.layer), &alice).await, 200);
    // Another image of the repository is seen at once, and a denial in the namespace takes the short way from those who had it.
    server.push("tools/app", &Sample::generated(3, 3, 100)).await;
    assert_eq!(server.status("GET", &object(&Sample::generated(3, 3, 100).layer), &alice).await, 200);
    server.grant("user:bob", "tools/secret", "pull", true).await;
    assert_eq!(server.status("GET", &object(&secret.layer), &bob).await, 404);
    assert_eq!(server.status("GET", &object(&own.layer), &bob).await, 200);
    server.registry.stop().await;
}

/// GHSA-c9p4-xwr9-rfhx and others: rights that were taken away lived on in sessions and caches.
#[tokio::test]
async fn rights_that_are_taken_away_are_gone_at_once() {
    let server = Server::start().await;
    server.push("tools/app", &Sample::generated(1, 2, 100)).await;
    let path = "/v1/repositories/tools/app/-/tags";
    let alice = server.user("alice").await;
    server.grant("user:alice", "tools/*", "pull", false).await;
    let key = server.key(json!({"name": "ci", "owner": "alice", "scopes": [{"target": "*", "rights": "pull"}]})).await;
    let login = server.token(&alice, "scope=*&offline_token=true").await;
    let all = [alice.clone(), key.clone(), bearer(&login["token"]), bearer(&login["refresh_token"]), bearer(&server.token(&key, "scope=*").await["token"])];
    let expect = async |expected: [u16; 5], when: &str| {
        for (auth, expected) in all.iter().zip(expected) {
            assert_eq!(server.status("GET", path, auth).await, expected, "{when}: {auth:?}");
        }
    };
    expect([200; 5], "with rights").await;
    server.manage("DELETE", "/v1/grants?subject=user:alice&target=tools/*", Value::Null).await;
    expect([404; 5], "without the grant").await;
    server.grant("user:alice", "tools/app", "pull", false).await;
    expect([200; 5], "with the grant again").await;
    server.manage("PUT", "/v1/users/alice", json!({"disabled": true})).await;
    expect([401; 5], "disabled").await;
    server.manage("PUT", "/v1/users/alice", json!({"disabled": false})).await;
    // Tokens from before do not come back to life; passwords, keys and logins do.
    expect([200, 200, 401, 200, 200], "enabled").await;
    server.manage("PUT", "/v1/users/alice", json!({"password": "another horse"})).await;
    expect([401, 200, 401, 401, 200], "another password").await;
    server.manage("DELETE", "/v1/keys/ci", Value::Null).await;
    expect([401; 5], "without the key").await;
    server.manage("DELETE", "/v1/users/alice", Value::Null).await;
    // The next one of that name starts without rights.
    server.user("alice").await;
    assert_eq!(server.status("GET", path, &alice).await, 404);
    assert_eq!(server.status("GET", path, &bearer(&login["token"])).await, 401);
    server.registry.stop().await;
}

#[tokio::test]
async fn tokens_as_container_tools_get_them() {
    let server = Server::start().await;
    server.push("tools/app", &Sample::generated(1, 2, 100)).await;
    let alice = server.user("alice").await;
    server.grant("user:alice", "tools/*", "pull", false).await;
    let challenge = server.send("GET", "/v2/", &Auth::None, "").await.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert_eq!(challenge, format!("Bearer realm=\"{}/auth/token\",service=\"turbo-registry\"", server.registry.url));
    // More is asked for than there are rights: the token has those that there are.
    let token = server.token(&alice, "account=alice&scope=repository:tools/app:pull,push").await;
    assert_eq!(token["token"], token["access_token"]);
    assert!(token["expires_in"].as_u64().unwrap() <= 300 && token["refresh_token"].is_null());
    let token = bearer(&token["token"]);
    assert_eq!(server.status("GET", "/v2/", &token).await, 200);
    assert_eq!(server.status("GET", "/v1/repositories/tools/app/-/tags", &token).await, 200);
    assert_eq!(server.status("POST", "/v2/tools/app/blobs/uploads/", &token).await, 403);
    // For another repository it is asked for again.
    let answer = server.send("GET", "/v2/tools/other/tags/list", &token, "").await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("scope=\"repository:tools/other:pull\"") && challenge.contains("error=\"insufficient_scope\""), "{challenge}");
    // A token of no scope, as `docker login` asks for, opens nothing.
    let empty = bearer(&server.token(&alice, "").await["token"]);
    assert_eq!(server.status("GET", "/v2/", &empty).await, 200);
    assert_eq!(server.status("GET", "/v1/repositories/tools/app/-/tags", &empty).await, 401);
    assert_eq!(server.status("GET", "/v1/users", &bearer(&server.token(&server.admin, "").await["token"])).await, 403, "an administrator's, too");
    // OAuth 2: a password for a login, and the login for tokens.
    let form = "grant_type=password&service=turbo-registry&client_id=docker&access_type=offline&username=alice&password=correct+horse";
    let login: Value = server.send("POST", "/auth/token", &Auth::None, form).await.json().await.unwrap();
    let refresh = login["refresh_token"].as_str().unwrap();
    let renew = format!("grant_type=refresh_token&client_id=docker&service=turbo-registry&scope=repository:tools/app:pull&refresh_token={refresh}");
    let renewed: Value = server.send("POST", "/auth/token", &Auth::None, renew.clone()).await.json().await.unwrap();
    assert_eq!(server.status("GET", "/v1/repositories/tools/app/-/tags", &bearer(&renewed["access_token"])).await, 200);
    assert!(renewed["refresh_token"].is_null(), "only a password gives one");
    assert_eq!(server.send("POST", "/auth/revoke", &Auth::None, format!("token={refresh}")).await.status(), StatusCode::OK);
    assert_eq!(server.send("POST", "/auth/revoke", &Auth::None, "token=trk_nothing").await.status(), StatusCode::OK);
    assert_eq!(server.send("POST", "/auth/token", &Auth::None, renew).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(server.status("GET", "/v1/repositories/tools/app/-/tags", &bearer(&renewed["access_token"])).await, 401, "its tokens end with it");
    for bad in ["grant_type=password&username=alice&password=wrong", "grant_type=refresh_token&refresh_token=x", "grant_type=password"] {
        assert_eq!(server.send("POST", "/auth/token", &Auth::None, bad).await.status(), StatusCode::UNAUTHORIZED, "{bad}");
    }
    // A token that gave another one would live for ever.
    let token = server.token(&server.admin, "scope=repository:tools/app:pull").await["token"].as_str().unwrap().to_owned();
    assert_eq!(server.status("GET", "/auth/token?scope=repository:tools/app:pull", &Auth::Bearer(token.clone())).await, 401);
    let renew = format!("grant_type=refresh_token&service=turbo-registry&refresh_token={token}");
    assert_eq!(server.send("POST", "/auth/token", &Auth::None, renew).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(server.send("POST", "/auth/token", &Auth::None, "grant_type=device").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(server.status("GET", "/auth/token?service=other", &alice).await, 400);
    for auth in [Auth::Bearer("x.y.z".into()), Auth::Bearer("eyJhbGciOiJub25lIn0.e30.".into()), Auth::Basic("alice".into(), "wrong horse".into())] {
        assert_eq!(server.status("GET", "/v2/", &auth).await, 401, "{auth:?}");
    }
    server.registry.stop().await;
}

#[tokio::test]
async fn a_token_that_is_over_is_renewed_and_the_upload_goes_on() {
    let server = Server::with(|config| config.token_life = Duration::ZERO).await;
    let over = bearer(&server.token(&server.admin, "scope=*").await["token"]);
    let answer = server.send("GET", "/v1/repositories", &over, "").await;
    assert!(answer.headers()["www-authenticate"].to_str().unwrap().contains("error=\"invalid_token\""));
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let start = server.send("POST", "/v2/tools/app/blobs/uploads/", &server.admin, "").await;
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    let bytes = b"some bytes".to_vec();
    assert_eq!(server.send("PATCH", &location, &over, bytes.clone()).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(server.send("PATCH", &location, &server.admin, bytes.clone()).await.status(), StatusCode::ACCEPTED);
    assert_eq!(server.status("PUT", &format!("{location}?digest={}", sha256(&bytes)), &server.admin).await, 201);
    server.registry.stop().await;
}

#[tokio::test]
async fn guessing_is_slow_and_tells_nothing() {
    let server = Server::with(|config| config.limits.logins.pair = LoginLimit { burst: 5, interval: Duration::from_secs(600) }).await;
    let alice = server.user("alice").await;
    server.user("bob").await;
    let hashes = async || {
        let text = server.send("GET", "/metrics", &server.admin, "").await.text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix("turbo_registry_password_hashes_total ")).unwrap().parse::<u64>().unwrap()
    };
    // The administrator's own password was hashed by now, and is remembered.
    let start = hashes().await;
    let wrong = |name: &str| Auth::Basic(name.into(), "wrong horse".into());
    let of_alice = server.send("GET", "/v2/", &wrong("alice"), "").await;
    assert_eq!(hashes().await, start + 1);
    let of_nobody = server.send("GET", "/v2/", &wrong("nobody"), "").await;
    assert_eq!(hashes().await, start + 2, "a user that does not exist costs as much");
    assert_eq!(of_alice.status(), of_nobody.status());
    assert_eq!(of_alice.text().await.unwrap(), of_nobody.text().await.unwrap());
    // A right password is remembered for a while: container tools send it with each request.
    for _ in 0..3 {
        assert_eq!(server.status("GET", "/v2/", &alice).await, 200);
    }
    assert_eq!(hashes().await, start + 3);
    for _ in 0..4 {
        assert_eq!(server.status("GET", "/v2/", &wrong("alice")).await, 401);
    }
    let answer = server.send("GET", "/v2/", &wrong("alice"), "").await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 60);
    let before = hashes().await;
    assert_eq!(server.status("GET", "/v2/", &Auth::Basic("alice".into(), "correct horsE".into())).await, 429);
    assert_eq!(hashes().await, before, "who is slowed down costs nothing");
    assert_eq!(server.status("GET", "/v2/", &basic("bob")).await, 200, "others are not slowed down");
    assert_eq!(server.status("GET", "/v2/", &alice).await, 200, "nor who is logged in");
    server.registry.stop().await;
}

/// CVE-2026-41888: a switch that forbids deletes did not hold for tags. CVE-2026-31801: `latest` was overwritten by who may
/// only add.
#[tokio::test]
async fn switches_and_missing_rights_hold_on_every_path() {
    let server = Server::with(|config| config.allow_delete = false).await;
    let manifest = server.oci_image("tools/app", "latest", &server.admin).await;
    server.push("tools/app", &Sample::generated(1, 2, 100)).await;
    let blob = server.blob("tools/app", b"a blob", &server.admin).await;
    for path in routes().into_iter().filter(|(_, _, right)| *right == "delete").map(|(_, path, _)| path) {
        assert_eq!(server.status("DELETE", &path.replace("REPO", "tools/app"), &server.admin).await, 405, "{path}");
    }
    for path in ["manifests/latest".to_owned(), format!("manifests/{manifest}"), format!("blobs/{blob}")] {
        assert_eq!(code(server.send("DELETE", &format!("/v2/tools/app/{path}"), &server.admin, "").await).await, (405, "UNSUPPORTED".into()));
        assert_eq!(server.status("HEAD", &format!("/v2/tools/app/{path}"), &server.admin).await, 200);
    }
    // An upload that was begun can be given up all the same.
    let start = server.send("POST", "/v2/tools/app/blobs/uploads/", &server.admin, "").await;
    assert_eq!(server.status("DELETE", start.headers()["location"].to_str().unwrap(), &server.admin).await, 204);
    // Nothing but the right to push moves a release, by whatever path.
    let alice = server.user("alice").await;
    server.grant("user:alice", "tools/app", "pull,delete", false).await;
    for path in [
        "/v2/tools/app/manifests/latest".to_owned(),
        format!("/v2/tools/app/manifests/{manifest}?tag=latest"),
        "/v1/repositories/tools/app/-/manifests/latest".into(),
        "/v1/repositories/tools/app/-/manifests/head".into(),
    ] {
        assert_eq!(server.status("PUT", &path, &alice).await, 403, "{path}");
    }
    server.registry.stop().await;
}

#[tokio::test]
async fn lists_show_what_may_be_read() {
    let server = Server::start().await;
    for repository in ["a/one", "b/one", "b/two", "c/one"] {
        server.oci_image(repository, "1", &server.admin).await;
        server.push(repository, &Sample::generated(1, 2, 100)).await;
    }
    let alice = server.user("alice").await;
    server.grant("user:alice", "b/*", "pull", false).await;
    server.grant("user:alice", "c/one", "push", false).await;
    let list = async |path: &str, auth: &Auth| -> Vec<String> {
        let answer: Value = server.send("GET", path, auth, "").await.json().await.unwrap();
        serde_json::from_value(answer["repositories"].clone()).unwrap()
    };
    for path in ["/v2/_catalog", "/v1/repositories"] {
        assert_eq!(list(path, &alice).await, ["b/one", "b/two"], "{path}");
        assert_eq!(list(path, &server.admin).await, ["a/one", "b/one", "b/two", "c/one"], "{path}");
    }
    // Pages are full although names between are passed over. CVE-2023-2253: a huge page was allocated.
    let page = server.send("GET", "/v2/_catalog?n=1", &alice, "").await;
    assert!(page.headers()["link"].to_str().unwrap().contains("last=b%2Fone"));
    assert_eq!(list("/v2/_catalog?n=1&last=b/one", &alice).await, ["b/two"]);
    assert_eq!(list("/v1/repositories?limit=1", &alice).await, ["b/one"]);
    assert_eq!(list(&format!("/v2/_catalog?n={}", u64::MAX), &alice).await.len(), 2);
    // Tokens list what they were issued for.
    let narrow = bearer(&server.token(&alice, "scope=repository:b/two:pull").await["token"]);
    assert_eq!(server.status("GET", "/v2/_catalog", &narrow).await, 401);
    let catalog = bearer(&server.token(&alice, "scope=registry:catalog:*").await["token"]);
    assert_eq!(list("/v2/_catalog", &catalog).await, ["b/one", "b/two"]);
    server.registry.stop().await;
}

#[tokio::test]
async fn everyone_may_read_if_that_is_the_setting() {
    let server = Server::with(|config| config.anonymous_read = true).await;
    server.oci_image("tools/app", "1", &server.admin).await;
    let blob = server.blob("tools/app", b"public", &server.admin).await;
    let cached = async |auth: &Auth| {
        let answer = server.send("GET", &format!("/v2/tools/app/blobs/{blob}"), auth, "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.headers()["cache-control"].to_str().unwrap().to_owned()
    };
    assert!(cached(&Auth::None).await.starts_with("public"));
    assert!(cached(&server.admin).await.starts_with("private"), "no cache keeps what was given to someone");
    // Tools see that they can log in, and get a token without.
    assert_eq!(server.status("GET", "/v2/", &Auth::None).await, 401);
    let token = bearer(&server.token(&Auth::None, "scope=repository:tools/app:pull,push").await["token"]);
    assert_eq!(server.status("GET", "/v2/", &token).await, 200);
    assert_eq!(server.status("GET", "/v2/tools/app/manifests/1", &token).await, 200);
    assert_eq!(server.status("POST", "/v2/tools/app/blobs/uploads/", &token).await, 401);
    assert_eq!(server.status("POST", "/v2/tools/app/blobs/uploads/", &Auth::None).await, 401);
    // States stay private, and wrong credentials are not taken for none.
    let alice = server.user("alice").await;
    let states = "/v1/repositories/states-of-alice/default/-/states";
    assert_eq!((server.status("GET", states, &Auth::None).await, server.status("GET", states, &alice).await), (401, 404));
    assert_eq!(code(server.send("GET", states, &alice, "").await).await.1, "REPOSITORY_UNKNOWN");
    assert_eq!(server.status("GET", "/v2/tools/app/manifests/1", &Auth::Basic("alice".into(), "wrong horse".into())).await, 401);
    server.registry.stop().await;
}

#[tokio::test]
async fn who_manages_what() {
    let server = Server::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let refused = async |auth: &Auth, method: &str, path: &str, body: Value| server.manage_as(auth, method, path, body).await.unwrap_err().0;
    // CVE-2019-16097: a user made an administrator by a field of the request.
    assert_eq!(refused(&alice, "PUT", "/v1/users/mallory", json!({"password": PASSWORD, "admin": true})).await, 403);
    assert_eq!(refused(&alice, "PUT", "/v1/users/alice", json!({"admin": true})).await, 403);
    assert_eq!(refused(&alice, "PUT", "/v1/users/bob/password", json!({"current": PASSWORD, "password": "another horse"})).await, 403);
    assert_eq!(refused(&alice, "PUT", "/v1/users/alice/password", json!({"current": "wrong horse", "password": "another horse"})).await, 401);
    assert_eq!(refused(&alice, "PUT", "/v1/users/alice/password", json!({"current": PASSWORD, "password": "short"})).await, 400);
    // The own namespace is the owner's to share, and no other.
    let share = |target: &str| json!({"subject": "user:bob", "target": target, "rights": "pull,push"});
    server.manage_as(&alice, "PUT", "/v1/grants", share("alice/*")).await.unwrap();
    for target in ["tools/*", "*", "bob/*", "@metrics", "states-public/*"] {
        assert_eq!(refused(&alice, "PUT", "/v1/grants", share(target)).await, 403, "{target}");
    }
    assert_eq!(server.status("POST", "/v2/alice/app/blobs/uploads/", &bob).await, 202);
    assert_eq!(refused(&bob, "DELETE", "/v1/grants?subject=user:bob&target=alice/*", Value::Null).await, 403, "who may push does not share");
    assert_eq!(server.manage_as(&bob, "GET", "/v1/grants", Value::Null).await.unwrap()["grants"].as_array().unwrap().len(), 0);
    // CVE-2022-31667: keys were managed without asking whose they are.
    let scopes = json!([{"target": "*", "rights": "pull"}]);
    let key = server.manage_as(&alice, "POST", "/v1/keys", json!({"name": "mine", "scopes": scopes})).await.unwrap();
    assert_eq!((key["owner"].as_str(), key["secret"].as_str().unwrap().len()), (Some("alice"), 77));
    assert_eq!(refused(&bob, "POST", "/v1/keys", json!({"name": "theirs", "owner": "alice", "scopes": scopes})).await, 403);
    assert_eq!(refused(&bob, "POST", "/v1/keys", json!({"name": "theirs", "namespace": "alice", "scopes": scopes})).await, 403);
    assert_eq!(refused(&bob, "DELETE", "/v1/keys/mine", Value::Null).await, 404);
    assert_eq!(refused(&bob, "DELETE", "/v1/keys/nothing", Value::Null).await, 404);
    assert_eq!(server.manage_as(&bob, "GET", "/v1/keys", Value::Null).await.unwrap()["keys"].as_array().unwrap().len(), 0);
    let listed = server.manage_as(&alice, "GET", "/v1/keys", Value::Null).await.unwrap();
    assert!(!listed.to_string().contains(key["secret"].as_str().unwrap()), "shown once");
    // A key manages nothing, even an administrator's.
    let of_admin = server.key(json!({"name": "root", "owner": "admin", "scopes": [{"target": "*", "rights": "admin"}]})).await;
    assert_eq!(refused(&of_admin, "PUT", "/v1/users/mallory", json!({"password": PASSWORD})).await, 403);
    assert_eq!(refused(&of_admin, "POST", "/v1/keys", json!({"name": "another", "scopes": scopes})).await, 403);
    for rights in ["pull", "admin"] {
        let grant = json!({"subject": "user:bob", "target": "tools/*", "rights": rights});
        assert_eq!(refused(&of_admin, "PUT", "/v1/grants", grant).await, 403, "a grant would outlive the key");
    }
    let token = bearer(&server.token(&server.admin, "scope=repository:tools/app:*").await["token"]);
    let grant = json!({"subject": "user:bob", "target": "tools/app", "rights": "admin"});
    assert_eq!(refused(&token, "PUT", "/v1/grants", grant).await, 403, "and a token of one repository, too");
    // Somebody is always left to manage.
    assert_eq!(refused(&server.admin, "DELETE", "/v1/users/admin", Value::Null).await, 409);
    assert_eq!(refused(&server.admin, "PUT", "/v1/users/admin", json!({"disabled": true})).await, 409);
    assert_eq!(refused(&server.admin, "PUT", "/v1/users/admin", json!({"admin": false})).await, 409);
    // Names that mean something, or somebody else's namespace.
    server.oci_image("taken/app", "1", &server.admin).await;
    for (name, status) in [("library", 400), ("states-of-alice", 400), ("Alice", 400), ("a%2Fb", 400), ("taken", 409)] {
        assert_eq!(refused(&server.admin, "PUT", &format!("/v1/users/{name}"), json!({"password": PASSWORD})).await, status, "{name}");
    }
    server.manage("PUT", "/v1/users/taken", json!({"password": PASSWORD, "take_namespace": true})).await;
    // What was done is in the log, with who and from where; and no secret is.
    let answer = server.send("PUT", "/v1/users/carol", &server.admin, json!({"password": PASSWORD}).to_string()).await;
    let entries = server.audit_with(&request_id(&answer)).await;
    let entry = entries.iter().find(|entry| entry["target"] == "user/carol").unwrap();
    assert_eq!(
        (&entry["who"], &entry["action"], &entry["outcome"], &entry["address"]),
        (&json!("user:admin"), &json!("user_add"), &json!("done"), &json!("127.0.0.1"))
    );
    let all = Value::from(entries).to_string();
    assert!(!all.contains(PASSWORD) && !all.contains(key["secret"].as_str().unwrap()));
    // The first password is forgotten once it is changed.
    assert!(server.data.path().join("initial-admin-password").exists());
    server.manage("PUT", "/v1/users/admin", json!({"password": "a new long one"})).await;
    assert!(!server.data.path().join("initial-admin-password").exists());
    server.registry.stop().await;
}

#[tokio::test]
async fn on_this_machine_it_is_open_until_there_is_a_user() {
    let data = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let get = async |path: &str| registry.client.get(format!("{}{path}", registry.url)).send().await.unwrap();
    assert_eq!(get("/v1/whoami").await.json::<Value>().await.unwrap()["who"], "open");
    assert_eq!(get("/v2/").await.status(), StatusCode::OK);
    assert!(!data.path().join("initial-admin-password").exists());
    let first = json!({"password": PASSWORD}).to_string();
    let added: Value = registry.client.put(format!("{}/v1/users/alice", registry.url)).body(first).send().await.unwrap().json().await.unwrap();
    assert_eq!(added["admin"], true, "or nobody could manage the server");
    assert_eq!(get("/v1/whoami").await.json::<Value>().await.unwrap()["who"], "anonymous");
    assert_eq!(get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    let known = registry.client.get(format!("{}/v1/whoami", registry.url)).basic_auth("alice", Some(PASSWORD)).send().await.unwrap();
    assert_eq!(known.json::<Value>().await.unwrap(), json!({"who": "user:alice", "name": "alice", "admin": true}));
    registry.stop().await;
    // It stays so after a restart.
    let registry = TestRegistry::start(data.path()).await;
    assert_eq!(registry.client.get(format!("{}/v2/", registry.url)).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    registry.stop().await;
}

#[tokio::test]
async fn one_address_does_not_take_all_places_and_heads_are_bounded() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let data = tempfile::tempdir().unwrap();
    let mut config = Config::new(data.path());
    config.limits.max_connections_per_address = Some(3);
    let registry = TestRegistry::with_config(config).await;
    let connect = async || tokio::net::TcpStream::connect(registry.url.strip_prefix("http://").unwrap()).await.unwrap();
    let ask = async |stream: &mut tokio::net::TcpStream, head: &str| {
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = vec![0; 4096];
        let len = stream.read(&mut answer).await.unwrap_or(0);
        String::from_utf8_lossy(&answer[..len]).into_owned()
    };
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect().await;
        assert!(ask(&mut stream, request).await.starts_with("HTTP/1.1 200"));
        held.push(stream);
    }
    assert_eq!(ask(&mut connect().await, request).await, "", "the fourth is closed");
    drop(held);
    let mut free = None;
    for _ in 0..200 {
        let mut stream = connect().await;
        if ask(&mut stream, request).await.starts_with("HTTP/1.1 200") {
            free = Some(stream);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut stream = free.expect("places are free again");
    let many = (0..150).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    assert!(ask(&mut stream, &format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n")).await.starts_with("HTTP/1.1 431"));
    drop(stream);
    registry.stop().await;
}
