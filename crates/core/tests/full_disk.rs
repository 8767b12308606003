//! A disk that is full at any byte of a backup or of an import: never a success, and everything that was there is whole.
//!
//! In a short form a seeded tenth of the sizes; with `SKEP_SOAK` all of them.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{World, admin, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skep_core::{Code, CreateRequest, Outcome, RestoreMode};
use skep_names::BotId;
use skep_testkit::fake_runtime::Verb;
use skep_testkit::trees;

const STEP_BYTES: u64 = 4096;
const DATA_BYTES: usize = 1 << 20;
/// A disk that nothing fills.
const LARGE_BYTES: u64 = 4 << 30;
/// Of what is kept already.
const OLD_BYTES: usize = 100_000;

/// A file system of a size that can be changed; unmounted also when a test fails.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        run(&["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "small"], place);
        Self(place.to_owned())
    }

    fn resize(&self, bytes: u64) {
        run(&["mount", "-o", &format!("remount,size={bytes}")], &self.0);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(&["umount", "--lazy"], &self.0);
    }
}

fn run(command: &[&str], place: &Path) {
    let ended = Command::new(command[0])
        .args(&command[1..])
        .arg(place)
        .output()
        .unwrap();
    assert!(
        ended.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

/// A stopped workspace with a mebibyte that does not compress, and an older backup of something else.
async fn filled(world: &World, random: &mut StdRng) -> BotId {
    let bot = world.running_bot().await;
    let data = world.runtime.layer_path(&bot).join("data");
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| random.random()).collect() };
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("old"), noise(OLD_BYTES)).unwrap();
    world.preserve(&bot).await.unwrap();
    let request = CreateRequest {
        restore_data: Some(false),
        ..CreateRequest::default()
    };
    let created = world.skep.create_workspace(&bot, request, &admin()).await.unwrap();
    created.outcome().await.unwrap();
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("new"), noise(DATA_BYTES)).unwrap();
    world.stop(&bot).await.unwrap();
    bot
}

/// Which sizes of a disk are tried.
struct Steps {
    every: u64,
    offset: u64,
}

impl Steps {
    /// With the source of everything that is random.
    fn chosen() -> (Self, StdRng) {
        let given = std::env::var("SKEP_SEED").ok().and_then(|text| text.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
        println!("SKEP_SEED={seed}");
        let every = if std::env::var_os("SKEP_SOAK").is_some() { 1 } else { 10 };
        let mut random = StdRng::seed_from_u64(seed);
        let offset = random.random_range(0..every);
        (Self { every, offset }, random)
    }

    fn below(self, bytes: u64) -> impl Iterator<Item = u64> {
        (1..bytes / STEP_BYTES).filter(move |step| step % self.every == self.offset)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_on_a_disk_that_is_full_fails_and_changes_nothing() {
    let (steps, mut random) = Steps::chosen();
    let world = World::new().await;
    let disk = SmallDisk::mount(&world.root.path().join("backups"));
    let bot = filled(&world, &mut random).await;
    let data = world.runtime.layer_path(&bot).join("data");
    let (kept, tree) = (world.skep.backups(&bot).await.unwrap(), trees::describe(&data).unwrap());
    let used = kept[0].size_bytes.next_multiple_of(STEP_BYTES);
    let mut tried = 0;
    for step in steps.below(DATA_BYTES as u64) {
        disk.resize(used + step * STEP_BYTES);
        let error = world.preserve(&bot).await.expect_err("it does not fit");
        assert_eq!(error.code(), Code::DiskFull, "{step}: {}", error.with_causes());
        assert_eq!(world.skep.backups(&bot).await.unwrap(), kept, "{step}");
        assert_eq!(
            fs::read_dir(world.root.path().join("backups")).unwrap().count(),
            1,
            "{step}"
        );
        assert_eq!(trees::describe(&data).unwrap(), tree, "{step}");
        tried += 1;
    }
    let newest = world.skep.open_backup(&bot, &kept[0].name).await.unwrap().backup;
    assert!(newest.verified);
    disk.resize(16 << 20);
    world.preserve(&bot).await.unwrap();
    let both = world.skep.backups(&bot).await.unwrap();
    assert_eq!(both.len(), 2);
    assert_eq!(
        both[1].sha256, kept[0].sha256,
        "the older one is whole, one generation older"
    );
    println!("{tried} sizes of a disk tried: 0 successes, 0 bytes lost");
}

/// A tar archive with a mebibyte that does not compress.
fn archive(random: &mut StdRng) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = (0..DATA_BYTES).map(|_| random.random()).collect();
    fs::write(tree.path().join("new"), noise).unwrap();
    let packed = Command::new("tar")
        .args(["--create", "--directory"])
        .arg(tree.path())
        .arg("new")
        .output();
    packed.unwrap().stdout
}

async fn import(world: &World, bot: &BotId, archive: &[u8]) -> skep_core::Result<Outcome> {
    let pieces: Vec<_> = archive.chunks(10_000).map(|piece| Ok(piece.to_vec().into())).collect();
    let received = world.skep.receive_archive(bot, futures::stream::iter(pieces)).await?;
    let begun = world
        .skep
        .import_data(bot, (received, RestoreMode::Merge), &admin())
        .await?;
    begun.outcome().await
}

fn used(disk: &SmallDisk) -> u64 {
    let told = rustix::fs::statvfs(&disk.0).unwrap();
    (told.f_blocks - told.f_bfree) * told.f_frsize
}

/// A stopped workspace with a file, and what its `/data` holds.
async fn with_old_data(world: &World, bot: &BotId) -> trees::Tree {
    world.create(bot).await.outcome().await.unwrap();
    world.stop(bot).await.unwrap();
    let data = world.runtime.layer_path(bot).join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("old"), "old").unwrap();
    trees::describe(&data).unwrap()
}

fn data_of(world: &World, bot: &BotId) -> trees::Tree {
    trees::describe(&world.runtime.layer_path(bot).join("data")).unwrap()
}

/// Everything that was received is gone with its import.
fn received(world: &World) -> usize {
    fs::read_dir(world.root.path().join("imports")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_does_not_fit_where_it_is_received_changes_nothing() {
    let (steps, mut random) = Steps::chosen();
    let world = World::new().await;
    let bot = world.bot().await;
    let before = with_old_data(&world, &bot).await;
    let archive = archive(&mut random);
    let disk = SmallDisk::mount(&world.root.path().join("imports"));
    for step in steps.below(DATA_BYTES as u64) {
        disk.resize(step * STEP_BYTES);
        let error = import(&world, &bot, &archive).await.expect_err("it does not fit");
        assert_eq!(error.code(), Code::DiskFull, "{step}: {}", error.with_causes());
        assert_eq!((received(&world), data_of(&world, &bot)), (0, before.clone()), "{step}");
    }
    disk.resize(LARGE_BYTES);
    import(&world, &bot, &archive).await.unwrap();
    let names: Vec<_> = data_of(&world, &bot).into_keys().collect();
    assert_eq!(names, [&b""[..], b"new", b"old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_does_not_fit_into_its_layer_changes_nothing() {
    let (steps, mut random) = Steps::chosen();
    let world = World::new().await;
    let bot = world.bot().await;
    let bots = world.runtime.image_path().with_file_name("bots");
    let disk = SmallDisk::mount(&bots.join(bot.as_str()));
    disk.resize(LARGE_BYTES);
    let before = with_old_data(&world, &bot).await;
    let archive = archive(&mut random);
    for step in steps.below(DATA_BYTES as u64) {
        // So much room there is when the writing begins, whatever was copied before.
        let hold = world.runtime.faults().hold(Verb::WriteData);
        let writes = || world.runtime.faults().calls(Verb::WriteData);
        let writes_before = writes();
        let filled = async {
            until(|| async {
                match writes() > writes_before {
                    true => Ok(()),
                    false => Err("nothing is written yet".to_owned()),
                }
            })
            .await;
            disk.resize(used(&disk) + step * STEP_BYTES);
            drop(hold);
        };
        let (imported, ()) = tokio::join!(import(&world, &bot, &archive), filled);
        let error = imported.expect_err("it does not fit");
        assert_eq!(error.code(), Code::DiskFull, "{step}: {}", error.with_causes());
        assert_eq!((received(&world), data_of(&world, &bot)), (0, before.clone()), "{step}");
        disk.resize(LARGE_BYTES);
    }
    import(&world, &bot, &archive).await.unwrap();
    let names: Vec<_> = data_of(&world, &bot).into_keys().collect();
    assert_eq!(names, [&b""[..], b"new", b"old"]);
    world.start(&bot).await.unwrap();
}
