//! The shipped project end to end, undisturbed: what the kill campaign is measured against.

use std::time::Duration;

use crate::harness::{Feeder, World};
use crate::judge::judge;

#[test]
#[ignore = "needs Kafka and PostgreSQL: make test"]
fn the_shipped_project_gives_what_one_query_over_all_input_gives() {
    let world = World::new("pipeline");
    Feeder::feed(&world, 1, 20_000);
    let to_the_end = &["--until-caught-up", "--close-windows"];
    world.run(to_the_end).succeed(Duration::from_secs(180));
    println!("{}", judge(&world));
    // Nothing is new: another start changes nothing.
    world.run(to_the_end).succeed(Duration::from_secs(60));
    println!("{}", judge(&world));
}

#[test]
#[ignore = "needs Kafka and PostgreSQL: make test"]
fn ctrl_c_finishes_the_batch_and_loses_nothing() {
    let world = World::new("ctrl_c");
    let feeder = Feeder::start(&world, 2, 2_000, 100_000);
    for _ in 0..3 {
        let mut program = world.run(&[]);
        crate::kill::first_batch(&mut program);
        program.interrupt();
        program.succeed(Duration::from_secs(60));
    }
    feeder.stop();
    world.run(&["--until-caught-up", "--close-windows"]).succeed(Duration::from_secs(180));
    println!("{}", judge(&world));
}
