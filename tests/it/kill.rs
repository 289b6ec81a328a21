//! kill -9 at random moments, again and again, under a steady input: at the end nothing is lost, doubled or half done.
//!
//! Moments come from a seed, printed, POUNDLOCK_SEED to repeat it: most some time after a start has shown its first
//! batch, so that all steps of the loop are hit; every fourth within a second of the start, so that recovery is hit
//! too, twice in a row at times. POUNDLOCK_KILLS makes the campaign longer.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Feeder, Program, World, setting, wait_for};
use crate::judge::judge;

#[test]
#[ignore = "needs Kafka, PostgreSQL and Elasticsearch: make test"]
fn kills_at_random_moments_leave_everything_exactly_once() {
    campaign(&World::new("kill"), setting("POUNDLOCK_KILLS", 20));
}

/// A fence of epochs in place of a lock: what a killed process still had on its way to the server may come later.
#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and S3: make test"]
fn and_so_they_do_with_lake_and_checkpoint_on_s3() {
    campaign(&World::on_s3("kill_s3"), setting("POUNDLOCK_KILLS", 20).div_ceil(2));
}

fn campaign(world: &World, kills: u64) {
    let seed = setting("POUNDLOCK_SEED", 1);
    println!("{kills} kills, POUNDLOCK_SEED={seed}");
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    // A long campaign gets its input more slowly, so that the judge can hold it.
    let feeder = Feeder::start(world, seed, if kills <= 50 { 1_500 } else { 400 }, 500_000);

    let mut grew = 0;
    for kill in 0..kills {
        let before = rows(world);
        let mut program = world.run(&[]);
        let at_start = kill % 4 == 3;
        if !at_start {
            first_batch(&mut program);
        }
        let moment = Duration::from_millis(chance.random_range(0..1_000));
        std::thread::sleep(moment);
        program.kill();
        let after = rows(world);
        grew += u64::from(after > before);
        println!(
            "kill {kill}: {moment:?} after its {}; {before} -> {after} rows of {} events",
            if at_start { "start" } else { "first batch" },
            feeder.sent()
        );
    }
    assert!(grew * 2 >= kills, "only {grew} of {kills} lives wrote anything: this campaign proves nothing");

    let sent = feeder.stop();
    world.run(&["--until-caught-up", "--close-windows"]).succeed(Duration::from_secs(300));
    println!("{kills} kills, {sent} events\n{}", judge(world));
}

/// The program logs one line a batch. (A replay says "not committed batch=…" before it has done anything.)
pub fn first_batch(program: &mut Program) {
    wait_for("the first committed batch in the log", Duration::from_secs(60), || {
        program.must_live();
        program.log().lines().any(|line| line.contains("INFO committed batch=")).then_some(())
    });
}

fn rows(world: &World) -> u64 {
    world.sql("SELECT count(*) FROM user_events").trim().parse().unwrap()
}
