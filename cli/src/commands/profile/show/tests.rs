//! What people and programs see of a model.

use layer_format::trace::{Event, Source, Touch, Trace};
use layer_format::{Digest, LayerPath};
use predictor::{Params, learn};

use super::*;

/// A launch that touches these folders' files one after the other, each file's entry and three buckets, a millisecond apart.
fn launch(entry_point: &str, folders: &[(&str, usize)]) -> Trace {
    let files: Vec<String> = folders.iter().flat_map(|(folder, count)| (0..*count).map(move |n| format!("{folder}/file{n}"))).collect();
    let paths: Vec<LayerPath> = files.iter().map(|file| LayerPath::new(file.as_str()).unwrap()).collect();
    let touches = [Touch::Meta, Touch::Data { bucket: 0 }, Touch::Data { bucket: 1 }, Touch::Data { bucket: 2 }];
    let events: Vec<Event> = (0..paths.len() as u32)
        .flat_map(|path| touches.map(move |touch| (path, touch)))
        .zip(1u64..)
        .map(|((path, touch), at)| Event { time_us: at * 1000, process: 0, layer: 0, path, touch, source: Source::Missed })
        .collect();
    Trace { image: Digest::of(b"image"), entry_point: entry_point.into(), architecture: "x86_64".into(), duration_us: 9_000_000, paths, events }
}

fn learned(only: Option<&str>) -> Learned {
    let mut model = Model::default();
    let common = [("usr/bin", 10), ("usr/lib/x86_64-linux-gnu/a-folder-with-a-name-that-is-much-too-long-for-a-column/of-eighty", 150)];
    let kind = |last: (&'static str, usize)| launch("/usr/bin/app", &[common[0], common[1], last]);
    for n in 0..12 {
        let trace = match n % 3 {
            0 => kind(("srv/migrations", 40)),
            _ => kind(("srv/templates", 100)),
        };
        learn(&mut model, &trace, &Params::default());
    }
    learn(&mut model, &launch("/usr/bin/tool", &[("usr/bin", 3), ("opt/\u{1b}[31mtool", 2)]), &Params::default());
    Learned::new("tools/app".into(), &model.encode(), &model, only)
}

fn text(learned: &Learned) -> String {
    let mut out = Vec::new();
    print(&mut out, learned).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn numbers_are_those_of_the_launches() {
    let learned = learned(None);
    assert_eq!((learned.traces, learned.entry_points.len()), (13, 2));
    let app = &learned.entry_points[0];
    assert_eq!((app.name.as_str(), app.launches, app.touches), ("/usr/bin/app", 12, 300 * 4));
    assert!(app.weight > 8.0 && app.weight < 12.0);
    let bucket = layer_format::trace::BUCKET_LEN;
    let [sure, likely, rare] = app.by_probability;
    assert_eq!(sure, Amount { files: 160, touches: 640, bytes: 160 * 3 * bucket });
    assert_eq!((likely.files, rare.files), (100, 40));
    assert_eq!((app.expected_hit_rate, app.expected_waste), (Some(1.0), Some(0.0)), "each kind always touches the same");
    let [often, seldom] = &app.variants[..] else { panic!("two kinds") };
    assert_eq!((often.launches, seldom.launches, often.touches, seldom.touches), (8, 4, 1040, 800));
    assert!((often.share + seldom.share - 1.0).abs() < 1e-5 && often.share > 0.6);
    assert!(often.touches_alone.len() == 3 && often.touches_alone.iter().all(|path| path.path.starts_with("/srv/templates/") && !path.parts));
    assert!(often.leaves_out.len() == 3 && often.leaves_out.iter().all(|path| path.path.starts_with("/srv/migrations/")));
    let touches: f64 = app.timeline.iter().map(|slot| slot.touches).sum();
    let expected = 640.0 + 400.0 * f64::from(often.share) + 160.0 * f64::from(seldom.share);
    assert!((touches - expected).abs() < 0.1, "{touches} {expected}");
    assert!(app.timeline.len() <= 13 && app.timeline[0].mostly == "/usr/lib/x86_64-linux-gnu", "{:?}", app.timeline);
    assert!(app.timeline.windows(2).all(|pair| pair[0].to_us == Some(pair[1].from_us)));
    assert_eq!(app.folders[0].path, "/usr/lib/x86_64-linux-gnu");
    assert_eq!(app.folders[0].bytes, 150 * 3 * bucket);
    assert_eq!(learned.entry_points[1].expected_hit_rate, None, "one launch predicts nothing that was seen to come true");
}

#[test]
fn of_kinds_that_came_once_each_the_others_predict_and_parts_of_files_tell_them_apart() {
    let mut model = Model::default();
    for half in 0..2 {
        // All entries, and of each file another bucket.
        let mut launch = launch("app", &[("lib", 100)]);
        launch.events.retain(|event| matches!(event.touch, Touch::Meta) || event.touch == Touch::Data { bucket: half });
        learn(&mut model, &launch, &Params::default());
    }
    let learned = Learned::new("tools/app".into(), &model.encode(), &model, None);
    let entry = &learned.entry_points[0];
    assert_eq!((entry.variants.len(), entry.expected_hit_rate), (2, Some(0.5)));
    assert!(entry.variants.iter().all(|kind| kind.touches_alone.len() == 3 && kind.touches_alone.iter().all(|telling| telling.parts)));
    assert!(text(&learned).contains("parts of /lib/file"));
}

#[test]
fn the_text_fits_80_columns_and_shows_nothing_that_steers_a_terminal() {
    let text = text(&learned(None));
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    for part in ["2 kinds of launches", "/usr/bin/app on x86_64", "all launches are of one kind", "/srv/migrations", "sure", "learned from 13 launches"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn one_entry_point_may_be_asked_for_and_an_empty_model_is_shown() {
    let one = learned(Some("/usr/bin/tool"));
    assert_eq!(one.entry_points.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["/usr/bin/tool"]);
    assert!(learned(Some("other")).entry_points.is_empty());
    let model = Model::default();
    assert!(text(&Learned::new("tools/app".into(), &model.encode(), &model, None)).contains("learned from 0 launches"));
    let mut model = Model::default();
    let nothing = Trace { events: Vec::new(), paths: Vec::new(), ..launch("app", &[]) };
    learn(&mut model, &nothing, &Params::default());
    text(&Learned::new("tools/app".into(), &model.encode(), &model, None));
}
