//! Random grants, keys and callers against an evaluator that is written as the documentation says it, one sentence a line;
//! and the cases that other registries got wrong.

use super::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const NAMES: [&str; 3] = ["alice", "bob", "carol"];
const REPOSITORIES: [&str; 9] =
    ["tools/app", "tools/other", "tools/a/b", "toolsmith/app", "alice/app", "bob/app", "library/app", "states-of-alice/default", "states-public/default"];
const TARGETS: [&str; 8] = ["*", "tools/*", "tools/app", "tools/a/*", "alice/*", "library/app", "states-public/*", "@metrics"];

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn key(name: &str, owner: Option<&str>, namespace: Option<&str>, scopes: Vec<Scope>) -> Key {
    Key {
        name: name.into(),
        prefix: "trk_00000000".into(),
        secret_hash: *blake3::hash(name.as_bytes()).as_bytes(),
        owner: owner.map(Into::into),
        namespace: namespace.map(Into::into),
        is_login: false,
        scopes,
        expires_at: None,
    }
}

fn random_policy(random: &mut StdRng) -> Policy {
    let mut policy = Policy { anonymous_read: random.random_bool(0.2), ..Policy::default() };
    for name in NAMES {
        let account = Account { is_admin: random.random_bool(0.2), is_disabled: random.random_bool(0.2), generation: 1 };
        policy.accounts.insert(name.into(), account);
    }
    let subjects = ["user:alice", "user:bob", "robot:ci", "authenticated", "anonymous"];
    for _ in 0..random.random_range(0..8) {
        let subject = subjects.choose(random).unwrap().parse().unwrap();
        let rights = Rights::from_bits(random.random_range(1..16));
        let grant = Grant { target: target(TARGETS.choose(random).unwrap()), is_deny: random.random_bool(0.4), rights };
        policy.grants.entry(subject).or_default().push(grant);
    }
    policy
}

fn random_caller(random: &mut StdRng) -> Caller {
    let scopes = |random: &mut StdRng| -> Vec<Scope> {
        let count = random.random_range(0..3);
        (0..count).map(|_| Scope { target: target(TARGETS.choose(random).unwrap()), rights: Rights::from_bits(random.random_range(1..16)) }).collect()
    };
    let who = match random.random_range(0..4) {
        0 => Who::Anonymous,
        1 => {
            let scopes = scopes(random);
            let (owner, namespace) = *[(None, None), (Some("alice"), None), (Some("bob"), None), (None, Some("tools"))].choose(random).unwrap();
            Who::Robot(Arc::new(key("ci", owner, namespace, scopes)))
        }
        _ => Who::User((*NAMES.choose(random).unwrap()).into()),
    };
    let token = random.random_bool(0.3).then(|| scopes(random));
    Caller { token, ..Caller::new(who) }
}

/// Whether a grant's target is about the repository, by comparing texts.
fn about(target: &Target, repository: &str) -> bool {
    let text = target.to_string();
    match text.strip_suffix('*') {
        Some(prefix) => repository.starts_with(prefix),
        None => text == repository,
    }
}

/// The documentation, sentence by sentence.
fn naive(policy: &Policy, caller: &Caller, repository: &str, right: Right) -> bool {
    let is_private = repository.starts_with("states-") && !repository.starts_with("states-public/");
    let grants = |subjects: &[String], deny: bool| {
        policy
            .grants
            .iter()
            .filter(|(subject, _)| subjects.contains(&subject.to_string()))
            .flat_map(|(_, grants)| grants)
            .filter(|grant| grant.is_deny == deny)
            .any(|grant| {
                let star_on_private = !deny && grant.target == Target::All && is_private;
                let named = grant.rights.iter().any(|granted| granted == right || granted == Right::Admin && !deny);
                about(&grant.target, repository) && !star_on_private && named
            })
    };
    let anonymous = policy.anonymous_read && right == Right::Pull && !is_private || grants(&["anonymous".into()], false);
    let user = |name: &str| {
        let account = policy.accounts[name];
        if account.is_disabled {
            return false;
        }
        let subjects = [format!("user:{name}"), "authenticated".to_owned()];
        let own = repository.starts_with(&format!("{name}/")) || repository.starts_with(&format!("states-of-{name}/"));
        let shared = repository.starts_with("states-public/") && (right == Right::Pull || right == Right::Push);
        (account.is_admin || own || shared || anonymous || grants(&subjects, false)) && !grants(&subjects, true)
    };
    let within = |scopes: &[Scope]| {
        scopes.iter().any(|scope| about(&scope.target, repository) && scope.rights.iter().any(|named| named == right || named == Right::Admin))
    };
    let entitled = match &caller.who {
        Who::Open => true,
        Who::Anonymous => anonymous && !grants(&["anonymous".into()], true),
        Who::User(name) => user(name),
        Who::Robot(key) => {
            let subjects = [format!("robot:{}", key.name), "authenticated".to_owned()];
            let others = anonymous || grants(&subjects, false);
            let bound = match (&key.owner, &key.namespace) {
                (Some(owner), _) => user(owner),
                (None, Some(namespace)) => repository.starts_with(&format!("{namespace}/")) || others,
                (None, None) => !is_private || others,
            };
            within(&key.scopes) && bound && !grants(&subjects, true)
        }
    };
    entitled && caller.token.as_ref().is_none_or(|scopes| within(scopes))
}

#[test]
fn random_grants_are_decided_as_the_documentation_says() {
    let mut counts = [0u32; 2];
    for seed in 0..3000 {
        let mut random = StdRng::seed_from_u64(seed);
        let policy = random_policy(&mut random);
        let caller = random_caller(&mut random);
        for repository in REPOSITORIES {
            for right in Right::ALL {
                let expected = naive(&policy, &caller, repository, right);
                counts[usize::from(expected)] += 1;
                let found = policy.allows(&caller, &target(repository), right);
                assert_eq!(found, expected, "seed {seed}: {} {right:?} {repository} in {policy:#?}", caller.shown());
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 5000), "{counts:?}: one answer is hardly asked for");
}

#[test]
fn a_right_on_a_namespace_is_one_on_each_repository_in_it() {
    for seed in 0..2000 {
        let mut random = StdRng::seed_from_u64(seed);
        let (policy, caller) = (random_policy(&mut random), random_caller(&mut random));
        for right in Right::ALL {
            if policy.allows(&caller, &target("tools/*"), right) {
                for repository in ["tools/app", "tools/other", "tools/a/b", "tools/new"] {
                    assert!(policy.allows(&caller, &target(repository), right), "seed {seed}: {right:?} {repository}");
                }
            }
        }
    }
}

#[test]
fn a_denial_anywhere_in_a_namespace_is_one_on_the_whole() {
    let mut policy = Policy::default();
    policy.accounts.insert("alice".into(), Account { is_admin: false, is_disabled: false, generation: 1 });
    let grant = |text: &str, is_deny| Grant { target: target(text), is_deny, rights: Rights::ALL };
    policy.grants.insert("user:alice".parse().unwrap(), vec![grant("tools/*", false), grant("tools/secret", true)]);
    let alice = Caller::new(Who::User("alice".into()));
    assert!(policy.allows(&alice, &target("tools/app"), Right::Pull));
    assert!(!policy.allows(&alice, &target("tools/secret"), Right::Pull));
    assert!(!policy.allows(&alice, &target("tools/*"), Right::Pull));
}

#[test]
fn keys_die_with_their_owner_and_with_time() {
    let mut policy = Policy::default();
    policy.accounts.insert("alice".into(), Account { is_admin: true, is_disabled: false, generation: 1 });
    let mut own = key("ci", Some("alice"), None, vec![Scope { target: Target::All, rights: Rights::ALL }]);
    own.expires_at = Some(1000);
    let hash = own.secret_hash;
    policy.keys.insert(hash, Arc::new(own));
    assert!(policy.key(&hash, 999).is_some() && policy.key(&hash, 1000).is_none());
    assert!(policy.key_named("ci", "trk_00000000", 999).is_some() && policy.key_named("ci", "trk_11111111", 999).is_none());
    policy.accounts.get_mut("alice").unwrap().is_disabled = true;
    assert!(policy.key(&hash, 999).is_none());
    assert!(!policy.is_server_admin(&Caller::new(Who::User("alice".into()))));
}

#[test]
fn states_under_a_key_are_its_own() {
    let policy = Policy::default();
    let pushing = key("ci", None, Some("tools"), vec![Scope { target: target("tools/*"), rights: "push".parse().unwrap() }]);
    let mut caller = Caller { states: Some("states-0123".into()), ..Caller::new(Who::Robot(Arc::new(pushing))) };
    let states = target("states-0123/default");
    assert!(policy.allows(&caller, &states, Right::Push) && policy.allows(&caller, &states, Right::Pull));
    assert!(!policy.allows(&caller, &target("states-4567/default"), Right::Pull));
    let reading = key("ci", None, Some("tools"), vec![Scope { target: target("tools/*"), rights: "pull".parse().unwrap() }]);
    caller.who = Who::Robot(Arc::new(reading));
    assert!(!policy.allows(&caller, &states, Right::Push), "who may write nowhere writes no states");
}
