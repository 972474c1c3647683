use super::*;

/// As Linux's driver does it.
struct Driver {
    watchdog: Watchdog,
    timer: Arc<Timer>,
}

impl Driver {
    /// Set up, of so many ticks a stage.
    fn new(ticks: [u32; 2], config: u16) -> Self {
        let timer = Arc::new(Timer::default());
        let mut driver = Self {
            watchdog: Watchdog::new(0xc000_0000, timer.clone()),
            timer,
        };
        driver.configure(CONFIG, &config.to_le_bytes());
        driver.configure(LOCK, &[0]);
        for (register, ticks) in [(FIRST, ticks[0]), (SECOND, ticks[1])] {
            driver.unlock();
            driver.watchdog.write(register, &ticks.to_le_bytes());
        }
        driver
    }

    fn configure(&mut self, register: usize, value: &[u8]) {
        self.watchdog.config_mut().write(register, value);
        self.watchdog.config_written();
    }

    fn unlock(&mut self) {
        for word in [0x80u16, 0x86] {
            self.watchdog.write(RELOAD, &word.to_le_bytes());
        }
    }

    fn feed(&mut self) {
        self.unlock();
        self.watchdog.write(RELOAD, &0x100u16.to_le_bytes());
    }

    /// How long until the first stage's end.
    fn left(&self) -> Option<Duration> {
        let (stage, end) = self.timer.lock().deadline?;
        assert_eq!(stage, Stage::First);
        Some(end.saturating_duration_since(Instant::now()))
    }
}

/// 30 s in all, as Linux's driver sets two stages of 15.36 s.
const LINUX: [u32; 2] = [30 << 9; 2];
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn it_counts_from_when_it_is_enabled_until_it_is_not() {
    let mut driver = Driver::new(LINUX, 3);
    assert_eq!(driver.left(), None);
    driver.feed();
    assert_eq!(driver.left(), None);
    driver.configure(LOCK, &[ENABLE]);
    let left = driver.left().unwrap();
    assert!((Duration::from_secs(15)..Duration::from_secs(16)).contains(&left), "{left:?}");
    driver.configure(LOCK, &[0]);
    assert_eq!(driver.left(), None);
}

#[test]
fn its_end_is_that_of_the_second_stage_and_comes_only_when_the_first_was_seen_to_end() {
    let mut driver = Driver::new(LINUX, 3);
    driver.configure(LOCK, &[ENABLE]);
    let now = Instant::now();
    let mut state = *driver.timer.lock();
    assert!(matches!(state.next(now), Next::Wait(Some(left)) if left < Duration::from_secs(16)));
    // The process stood still for a minute, which is longer than both stages.
    let Next::Wait(Some(second)) = state.next(now + MINUTE) else {
        panic!("{state:?}")
    };
    assert!((Duration::from_secs(15)..Duration::from_secs(16)).contains(&second), "{second:?}");
    assert_eq!(state.next(now + MINUTE), Next::Wait(Some(second)));
    assert_eq!(state.next(now + MINUTE + second), Next::Fire);
}

#[test]
fn feeding_begins_with_the_first_stage_again() {
    let mut driver = Driver::new(LINUX, 3);
    driver.configure(LOCK, &[ENABLE]);
    let now = Instant::now();
    driver.timer.lock().next(now + MINUTE);
    driver.feed();
    assert!(driver.left().is_some());
}

#[test]
fn nothing_is_fed_or_set_without_the_key_just_before_it() {
    let mut driver = Driver::new(LINUX, 3);
    driver.configure(LOCK, &[ENABLE]);
    let before = driver.timer.lock().deadline;
    let word = |driver: &mut Driver, register: u64, value: u16| driver.watchdog.write(register, &value.to_le_bytes());
    let attempts: [&dyn Fn(&mut Driver); 6] = [
        &|_| {},
        &|driver| word(driver, RELOAD, 0x80),
        &|driver| word(driver, RELOAD, 0x86),
        &|driver| {
            word(driver, RELOAD, 0x86);
            word(driver, RELOAD, 0x80);
        },
        &|driver| {
            driver.unlock();
            word(driver, FIRST, 1);
        },
        &|driver| {
            driver.unlock();
            driver.watchdog.write(8, &[0; 8]);
            driver.watchdog.write(8, &[0; 4]);
        },
    ];
    for attempt in attempts {
        attempt(&mut driver);
        word(&mut driver, RELOAD, 0x100);
        attempt(&mut driver);
        driver.watchdog.write(FIRST, &1u32.to_le_bytes());
        assert_eq!(driver.watchdog.preloads, LINUX);
    }
    assert_eq!(driver.timer.lock().deadline, before);
}

#[test]
fn a_locked_one_stays_as_it_is() {
    let mut driver = Driver::new(LINUX, 3);
    driver.configure(LOCK, &[ENABLE | LOCKED]);
    driver.configure(LOCK, &[0]);
    assert!(driver.left().is_some());
    assert_eq!(driver.watchdog.config().bytes()[LOCK], ENABLE | LOCKED);
}

#[test]
fn twenty_bits_count_and_fast_ticks_are_fast() {
    let mut driver = Driver::new([u32::MAX, 0], 3 | FAST);
    assert_eq!(driver.watchdog.preloads, [PRELOAD_BITS, 0]);
    driver.configure(LOCK, &[ENABLE]);
    let left = driver.left().unwrap();
    assert!(
        (Duration::from_millis(900)..Duration::from_millis(1020)).contains(&left),
        "{left:?}"
    );
    assert!(driver.timer.lock().second > Duration::ZERO);
}

#[test]
fn the_longest_stage_is_as_long_as_it_says() {
    let mut driver = Driver::new([PRELOAD_BITS; 2], 0);
    driver.configure(LOCK, &[ENABLE]);
    // 2^20 - 1 times 2^15 ticks.
    let left = driver.left().unwrap();
    assert!((Duration::from_secs(1040)..Duration::from_secs(1042)).contains(&left), "{left:?}");
}

#[test]
fn without_output_its_end_can_be_read_and_forgotten_and_does_nothing_else() {
    let mut driver = Driver::new(LINUX, 3 | NO_OUTPUT);
    driver.configure(LOCK, &[ENABLE]);
    let now = Instant::now();
    for passed in [1, 2] {
        assert_ne!(driver.timer.lock().next(now + passed * MINUTE), Next::Fire);
    }
    let mut word = [0; 2];
    driver.watchdog.read(RELOAD, &mut word);
    assert_eq!(u16::from_le_bytes(word), 0x200);
    driver.unlock();
    driver.watchdog.write(RELOAD, &0x200u16.to_le_bytes());
    driver.watchdog.read(RELOAD, &mut word);
    assert_eq!(word, [0; 2]);
}

#[test]
fn a_free_running_one_never_ends_anything() {
    let mut driver = Driver::new([1, 1], 3);
    driver.configure(LOCK, &[ENABLE | FREE_RUNNING]);
    assert_eq!(driver.left(), None);
}

#[test]
fn any_access_has_an_answer() {
    let mut driver = Driver::new(LINUX, 3);
    for offset in [0, 1, 3, 5, 9, 13, 15, 16, u64::MAX] {
        for length in 0..=8 {
            let mut data = vec![0xff; length];
            driver.watchdog.write(offset, &data);
            driver.watchdog.read(offset, &mut data);
            assert!(offset < 16 || data.iter().all(|byte| *byte == 0));
        }
    }
    let mut long = [0; 4];
    driver.watchdog.read(FIRST, &mut long);
    assert_eq!(u32::from_le_bytes(long), LINUX[0]);
}

#[test]
fn the_one_who_counts_is_told_of_the_end_and_of_an_earlier_deadline() {
    let driver = Driver::new(LINUX, 3);
    let counter = |timer: &Arc<Timer>| {
        let timer = timer.clone();
        std::thread::spawn(move || timer.count())
    };
    let counting = counter(&driver.timer);
    driver.timer.start(MINUTE, MINUTE, false);
    driver.timer.start(Duration::from_millis(1), Duration::from_millis(1), false);
    assert!(counting.join().unwrap());
    driver.timer.start(MINUTE, MINUTE, false);
    let counting = counter(&driver.timer);
    driver.timer.stop();
    assert!(!counting.join().unwrap());
}
