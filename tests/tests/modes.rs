//! Isolation as a user meets it: `turbo run --isolate`, and modes that an image states.

use integration_tests::Home;
use integration_tests::turbo::can_run;

#[test]
fn merge_works_on_the_host_and_images_keep_what_is_theirs() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    home.file("app/main.sh", "#!/bin/sh\n. /opt/app/lib\n");
    home.file("app/lib", "echo from the image\n");
    let work = home.path().join("work");
    home.file("work/document", "first\n");
    home.file("work/keys/secret", "secret\n");
    home.give_away(&work);
    let keys = format!("{}=hide", work.join("keys").display());
    let folder = home.path().join("app");
    let import = ["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "app", "--isolate", "/opt/app=full", "--isolate", &keys];
    home.turbo(import).ok();
    let script = format!(
        "sh /opt/app/main.sh && cd {} && echo second >> document && echo new > new && mv new newer && ls && ! cat keys/secret && ! ls {} && echo changed > /opt/app/lib",
        work.display(),
        home.store().display()
    );
    for level in ["merge", "write-copy"] {
        let outcome = home.turbo(["run", "--isolate", level, "-n", level, "--startup-file", "/bin/sh", "app", "--", "-c", &script]).ok();
        assert_eq!(outcome.stdout, "from the image\ndocument\nnewer\n", "{level}: {}", outcome.stderr);
    }
    let text = |name: &str| std::fs::read_to_string(work.join(name)).unwrap_or_default();
    assert_eq!((text("document").as_str(), text("newer").as_str(), text("new").as_str()), ("first\nsecond\n", "new\n", ""), "merge wrote once, write-copy not");
    assert!(!std::path::Path::new("/opt/app").exists());
}
