use super::*;

const HOUR: i64 = 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A certificate that is made at a second and counts for so many.
fn made(name: &str, issuer: &str, second: i64, seconds: i64) -> Facts {
    Facts {
        pem: format!("{name}@{second}"),
        subject: name.into(),
        issuer: issuer.into(),
        begins: at(second) - SKEW,
        ends: at(second + seconds),
    }
}

fn config() -> CertConfig {
    CertConfig::default()
}

/// What doing a step leads to, for a configuration of three webhooks.
fn done(state: &mut State, step: &Step, now: i64) {
    match step {
        Step::NewAuthority { earlier } => {
            let name = format!("ca{now}");
            state.authority = Some(made(&name, &name, now, 48 * HOUR));
            state.earlier = earlier.clone();
        }
        Step::Tell(bundle) => state.told = vec![bundle.clone(); 3],
        Step::NewServing { ends } => {
            let by = state.authority.as_ref().unwrap().subject.clone();
            state.serving = Some(made("server", &by, now, ends.as_second() - now));
        }
    }
}

fn fresh() -> State {
    State {
        told: vec![Vec::new(); 3],
        ..State::default()
    }
}

/// Takes steps until nothing is to be done; their names.
fn settle(state: &mut State, now: i64) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Some(step) = next(state, &config(), at(now)) {
        done(state, &step, now);
        names.push(match step {
            Step::NewAuthority { .. } => "authority",
            Step::Tell(_) => "tell",
            Step::NewServing { .. } => "serving",
        });
        assert!(names.len() < 10, "it never settles: {names:?}");
    }
    names
}

#[test]
fn from_nothing_an_authority_is_made_and_told_before_it_signs() {
    let mut state = fresh();
    assert_eq!(settle(&mut state, 0), ["authority", "tell", "serving"]);
    assert_eq!(settle(&mut state, 1), [] as [&str; 0]);
}

#[test]
fn a_serving_certificate_is_renewed_by_the_same_authority() {
    let mut state = fresh();
    settle(&mut state, 0);
    assert_eq!(settle(&mut state, 12 * HOUR - 1), [] as [&str; 0]);
    assert_eq!(settle(&mut state, 12 * HOUR), ["serving"]);
    assert_eq!(state.serving.unwrap().ends, at(36 * HOUR));
}

#[test]
fn a_new_authority_signs_only_when_the_api_server_has_had_time_to_learn_of_it() {
    let mut state = fresh();
    settle(&mut state, 0);
    settle(&mut state, 12 * HOUR);
    let renewal = 24 * HOUR;
    assert_eq!(settle(&mut state, renewal), ["authority", "tell"]);
    assert_eq!(state.told[2].len(), 2, "old and new together");
    assert_eq!(state.serving.as_ref().unwrap().issuer, "ca0");
    assert_eq!(settle(&mut state, renewal + 59), [] as [&str; 0]);
    assert_eq!(settle(&mut state, renewal + 60), ["serving"]);
    assert_eq!(state.serving.as_ref().unwrap().issuer, format!("ca{renewal}"));
    assert_eq!(state.told[0].len(), 2, "another replica may still show the old one's");
    assert_eq!(
        settle(&mut state, 48 * HOUR),
        ["authority", "tell"],
        "the first one's time is over, the second's near"
    );
    assert!(state.told[0].iter().all(|facts| facts.subject != "ca0"));
}

#[test]
fn whatever_is_shown_at_any_time_is_of_an_authority_that_was_told_a_while_ago() {
    let mut state = fresh();
    settle(&mut state, 0);
    let mut before = state.told[0].clone();
    for minute in 1..14 * 24 * 60 {
        let now = minute * 60;
        settle(&mut state, now);
        let serving = state.serving.as_ref().unwrap();
        assert!(counts(serving, at(now)), "minute {minute}");
        assert!(
            before.iter().any(|facts| facts.subject == serving.issuer),
            "minute {minute}: not known a minute ago"
        );
        assert!(state.told[0].len() <= 3, "{}", state.told[0].len());
        before = state.told[0].clone();
    }
}

#[test]
fn a_secret_that_is_gone_is_made_anew_and_what_replicas_still_show_remains_known() {
    let mut state = fresh();
    settle(&mut state, 0);
    state.authority = None;
    state.serving = None;
    assert_eq!(settle(&mut state, HOUR), ["authority", "tell"]);
    let names: Vec<_> = state.told[0].iter().map(|facts| facts.subject.as_str()).collect();
    assert_eq!(names, ["ca3600", "ca0"]);
    assert_eq!(settle(&mut state, HOUR + 60), ["serving"]);
}

#[test]
fn what_somebody_takes_out_of_one_webhook_is_told_again() {
    let mut state = fresh();
    settle(&mut state, 0);
    state.told[1].clear();
    assert_eq!(settle(&mut state, 1), ["tell"]);
}

#[test]
fn after_a_jump_of_the_clock_in_either_direction_all_is_made_anew_at_once() {
    for now in [1000 * HOUR, -1000 * HOUR] {
        let mut state = fresh();
        settle(&mut state, 0);
        assert_eq!(settle(&mut state, now), ["authority", "tell", "serving"]);
        assert_eq!(state.told[0].len(), 1);
    }
}

#[test]
fn a_serving_certificate_ends_with_its_authority_and_is_not_renewed_for_that_again_and_again() {
    let mut state = fresh();
    let config = CertConfig {
        ca: Span {
            renew_before: SignedDuration::from_hours(1),
            ..config().ca
        },
        ..config()
    };
    state.authority = Some(made("ca", "ca", 0, 48 * HOUR));
    state.told = vec![vec![state.authority.clone().unwrap()]];
    let now = at(40 * HOUR);
    let step = next(&state, &config, now).unwrap();
    assert_eq!(step, Step::NewServing { ends: at(48 * HOUR) });
    done(&mut state, &step, 40 * HOUR);
    state.told.truncate(1);
    assert_eq!(next(&state, &config, now), None);
}

#[test]
fn a_shorter_life_that_is_configured_counts_for_certificates_that_are_there() {
    let mut state = fresh();
    settle(&mut state, 0);
    let mut shorter = config();
    shorter.server = Span {
        duration: SignedDuration::from_hours(2),
        renew_before: SignedDuration::from_hours(1),
    };
    let step = next(&state, &shorter, at(60));
    assert_eq!(step, Some(Step::NewServing { ends: at(2 * HOUR + 60) }));
}
