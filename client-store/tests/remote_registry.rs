//! The HTTP client against a registry in memory, and what faults become.

mod store_support;

use std::time::{Duration, Instant};

use client_store::origin::{Origin, OriginError, Received};
use client_store::remote::{Registry, RegistryOptions};
use futures::StreamExt;
use layer_format::Digest;
use store_support::fake_registry::{FakeRegistry, Fault};
use store_support::*;

async fn receive(registry: &Registry, wanted: Vec<Digest>, frames: bool) -> Vec<Result<Received, OriginError>> {
    match registry.objects(&"tools/app".parse().unwrap(), wanted, None, frames).await {
        Ok(stream) => stream.collect().await,
        Err(error) => vec![Err(error)],
    }
}

#[tokio::test]
async fn objects_come_in_the_order_asked_and_frames_whole() {
    let fake = FakeRegistry::start().await;
    let image = image(1, 10, 20_000);
    fake.put("1.0", &image);
    let registry = fake.registry();
    registry.warm_up(2).await;
    let mut wanted = digests(&image);
    wanted.reverse();
    let absent = Digest::of(b"absent");
    wanted.push(absent);
    let plain = receive(&registry, wanted.clone(), false).await;
    assert_eq!(plain.len(), wanted.len() + 1);
    for (digest, received) in wanted.iter().zip(&plain) {
        match received.as_ref().unwrap() {
            Received::Object(bytes) => assert_eq!(Digest::of(bytes), *digest),
            other => assert_eq!((other, digest), (&Received::Missing(absent), &absent)),
        }
    }
    assert_eq!(plain.last().unwrap().as_ref().unwrap(), &Received::End(String::new()));
    let framed = receive(&registry, wanted, true).await;
    assert!(framed.iter().any(|record| matches!(record, Ok(Received::Frame(_)))) && framed.len() < plain.len());
}

#[tokio::test]
async fn manifests_tags_and_what_is_missing() {
    let fake = FakeRegistry::start().await;
    let image = image(1, 3, 20_000);
    fake.put("1.0", &image);
    let registry = fake.registry();
    for name in ["tools/app", "tools/app:1.0", &format!("tools/app@{}", image.digest), &format!("tools/app#{}", image.digest.short())] {
        assert_eq!(registry.head(&reference(name)).await.unwrap(), image.digest, "{name}");
        assert_eq!(registry.get_manifest(&reference(name)).await.unwrap().bytes, image.manifest);
    }
    let missing = registry.missing(&"tools/app".parse().unwrap(), &[Digest::of(b"x"), digests(&image)[0]]).await.unwrap();
    assert_eq!(missing, [true, false]);
    assert_eq!(registry.tags(&"tools/app".parse().unwrap()).await.unwrap().tags.len(), 2);
    assert_eq!(registry.get_model(&"tools/app".parse().unwrap(), None).await.unwrap(), None);
    for name in ["tools/app:2", "tools/app#abcdef0123"] {
        let error = registry.get_manifest(&reference(name)).await.unwrap_err();
        assert!(matches!(&error, OriginError::NotFound { what, .. } if what == name), "{error:?}");
    }
    registry.delete(&reference("tools/app:1.0")).await.unwrap();
    assert!(registry.head(&reference("tools/app:1.0")).await.is_err());
}

#[tokio::test]
async fn a_cut_answer_ends_with_an_error_and_keeps_what_came() {
    let fake = FakeRegistry::start().await;
    let image = image(1, 10, 20_000);
    fake.put("1.0", &image);
    fake.fault(Fault::Cut(90_000));
    let received = receive(&fake.registry(), digests(&image), false).await;
    assert!(received.len() > 3);
    let (last, before) = received.split_last().unwrap();
    assert!(before.iter().all(Result::is_ok));
    assert!(matches!(last, Err(OriginError::Network { .. })), "{last:?}");
}

#[tokio::test]
async fn faults_say_what_they_are() {
    let fake = FakeRegistry::start().await;
    let image = image(1, 3, 20_000);
    fake.put("1.0", &image);
    fake.fault(Fault::Busy(7));
    let error = receive(&fake.registry(), digests(&image), false).await.remove(0).unwrap_err();
    assert!(matches!(error, OriginError::Busy { retry_after: Some(after), .. } if after == Duration::from_secs(7)), "{error:?}");
    // Nothing comes.
    fake.fault(Fault::Stall(Duration::from_secs(20)));
    let started = Instant::now();
    let error = receive(&fake.registry_with(Duration::from_millis(200)), digests(&image), false).await.remove(0).unwrap_err();
    assert!(matches!(error, OriginError::Network { .. }) && error.is_retryable(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(10));
    // Nobody is there.
    let nobody = Registry::new("http://127.0.0.1:1/", RegistryOptions::default()).unwrap();
    let error = nobody.head(&reference("tools/app")).await.unwrap_err();
    assert!(error.to_string().contains("http://127.0.0.1:1") && error.is_retryable(), "{error}");
    // Something else is there.
    let error = fake.registry().capabilities().await.unwrap_err();
    assert!(!error.is_retryable(), "{error:?}");
    for url in ["hub", "ftp://x", "http://"] {
        assert!(Registry::new(url, RegistryOptions::default()).is_err(), "{url}");
    }
}

#[tokio::test]
async fn the_token_is_sent_and_never_shown() {
    let fake = FakeRegistry::start().await;
    fake.put("1.0", &image(1, 1, 10));
    fake.inner.lock().unwrap().token = Some("secret".into());
    let error = fake.registry().head(&reference("tools/app")).await.unwrap_err();
    assert!(matches!(&error, OriginError::Refused { status: 401, .. }), "{error:?}");
    let options = RegistryOptions { token: Some("secret".into()), ..RegistryOptions::default() };
    let registry = Registry::new(&fake.url, options).unwrap();
    registry.head(&reference("tools/app")).await.unwrap();
    assert!(!format!("{registry:?}").contains("secret"));
}

#[tokio::test]
async fn a_token_that_expires_is_read_again() {
    let fake = FakeRegistry::start().await;
    let image = image(1, 3, 10);
    fake.put("1.0", &image);
    fake.inner.lock().unwrap().token = Some("monday".into());
    let valid = std::sync::Arc::new(std::sync::Mutex::new("monday".to_owned()));
    let source = std::sync::Arc::clone(&valid);
    let options = RegistryOptions {
        token: Some("monday".into()),
        renew_token: Some(std::sync::Arc::new(move || Some(source.lock().unwrap().clone()))),
        ..RegistryOptions::default()
    };
    let registry = Registry::new(&fake.url, options).unwrap();
    assert!(receive(&registry, digests(&image), false).await.iter().all(Result::is_ok));
    // It expires, and nobody has renewed it.
    fake.inner.lock().unwrap().token = Some("tuesday".into());
    let error = receive(&registry, digests(&image), false).await.remove(0).unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("turbo login"), "{error}");
    // Somebody has: every kind of request goes on.
    *valid.lock().unwrap() = "tuesday".into();
    assert!(receive(&registry, digests(&image), false).await.iter().all(Result::is_ok));
    registry.head(&reference("tools/app")).await.unwrap();
    fake.inner.lock().unwrap().token = Some("wednesday".into());
    *valid.lock().unwrap() = "wednesday".into();
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("pack");
    std::fs::write(&pack, b"no pack").unwrap();
    let error = registry.put_pack(&"tools/app".parse().unwrap(), &layer_format::Digest::of(b"no pack"), &pack, |_| {}).await;
    assert!(!matches!(&error, Err(OriginError::Refused { status: 401, .. })), "{error:?}");
    registry.head(&reference("tools/app")).await.unwrap();
}
