//! Two servers with a data root each on one containerd; and two servers that want the same data root.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skep_testkit::Expected;

use crate::installation::{Installation, OciRuntime};
use crate::model::{amount, converge_limit, seed};

/// A bot of one of the two, and what is known of it.
struct Resident {
    bot: String,
    running: bool,
    number: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_containerd_leave_each_others_workspaces_alone() {
    let mut random = StdRng::seed_from_u64(seed());
    let first = Installation::start_with(
        OciRuntime::Found,
        &[("SKEP_WORKSPACE__RECONCILE_INTERVAL", "1s".to_owned())],
    )
    .await;
    let second = first
        .start_beside(&[("SKEP_WORKSPACE__RECONCILE_INTERVAL", "1s".to_owned())])
        .await;
    let mut residents = [settle_in(&first).await, settle_in(&second).await];
    let mut skeps = [first, second];
    let end = Instant::now() + Duration::from_secs(amount(15, 600) as u64);
    let mut rounds = 0;
    while Instant::now() < end {
        let one = random.random_range(0..2);
        disturb(&mut skeps[one], &mut random).await;
        change(&skeps[one], &mut residents[one], &mut random).await;
        // The other one's go on as they were, process by process.
        unharmed(&skeps[1 - one], &residents[1 - one]).await;
        unharmed(&skeps[one], &residents[one]).await;
        rounds += 1;
    }
    for one in 0..2 {
        let model: BTreeMap<_, _> = residents[one]
            .iter()
            .map(|resident| (resident.bot.clone(), state(resident)))
            .collect();
        let others = residents[1 - one].iter().map(|resident| resident.bot.clone()).collect();
        skeps[one]
            .traces()
            .beside(others)
            .until_as_in(&model, converge_limit())
            .await;
    }
    println!("{rounds} rounds of starts, ends and kills");
    let [first, second] = skeps;
    // Its containerd is the first one's.
    drop(second);
    drop(first);
}

fn state(resident: &Resident) -> Expected {
    match resident.running {
        true => Expected::Running,
        false => Expected::Stopped,
    }
}

async fn settle_in(skep: &Installation) -> Vec<Resident> {
    let mut residents = Vec::new();
    for number in 0..2 {
        let bot = skep.client.workspace(&format!("resident {number}"), None).await;
        let mut resident = Resident {
            bot,
            running: true,
            number,
        };
        mark(skep, &mut resident).await;
        residents.push(resident);
    }
    residents
}

/// A process that lives as long as nobody stops the workspace, and a file.
async fn mark(skep: &Installation, resident: &mut Resident) {
    resident.number += 1;
    let number = resident.number;
    let command = format!("(sleep 100000 & echo $! > /data/pid); echo {number} > /data/number");
    skep.client.output(&resident.bot, &command).await;
}

async fn disturb(skep: &mut Installation, random: &mut StdRng) {
    match random.random_range(0..3) {
        0 => {}
        1 => {
            skep.end_server();
            skep.start_server_again().await;
        }
        _ => {
            skep.kill_server();
            skep.start_server_again().await;
        }
    }
}

async fn change(skep: &Installation, residents: &mut [Resident], random: &mut StdRng) {
    let chosen = random.random_range(0..residents.len());
    let resident = &mut residents[chosen];
    match (resident.running, random.random_range(0..3)) {
        (true, 0) => {
            skep.client.act(&resident.bot, "stop").await;
            resident.running = false;
        }
        (true, 1) => {
            let passing = skep.client.workspace("passing", None).await;
            skep.client.delete_bot(&passing).await;
        }
        (true, _) => {
            skep.client.act(&resident.bot, "restart").await;
            mark(skep, resident).await;
        }
        (false, _) => {
            skep.client.act(&resident.bot, "start").await;
            resident.running = true;
            mark(skep, resident).await;
        }
    }
}

async fn unharmed(skep: &Installation, residents: &[Resident]) {
    for resident in residents {
        let info = skep.client.info(&resident.bot).await;
        assert_eq!(info["task_running"], resident.running, "{info}");
        if resident.running {
            let seen = skep
                .client
                .output(&resident.bot, "kill -0 $(cat /data/pid) && cat /data/number")
                .await;
            assert_eq!(seen, format!("{}\n", resident.number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_one_data_root_ends_at_once_and_names_the_first() {
    let skep = Installation::start(OciRuntime::Found).await;
    let (status, said) = skep.second_server(Duration::from_secs(30));
    assert!(!status.success(), "it ended with {status}");
    let holder = format!("process {}", skep.server_pid());
    assert!(said.contains(&holder), "it does not name {holder}: {said}");
    // The first one has noticed nothing.
    let bot = skep.client.workspace("undisturbed", None).await;
    assert_eq!(skep.client.output(&bot, "echo here").await, "here\n");
}
