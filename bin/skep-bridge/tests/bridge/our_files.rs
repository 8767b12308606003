//! The file methods of our own service.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::XattrFlags;
use skep_bridge_protocol::workspace::workspace_client::WorkspaceClient;
use skep_bridge_protocol::workspace::*;
use skep_bridge_protocol::{STREAM_CHUNK_BYTES, etag, reason};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::workspace::Workspace;

pub(crate) type Client = WorkspaceClient<Channel>;

pub(crate) fn reason_of(status: &Status) -> &str {
    status
        .metadata()
        .get(reason::METADATA_KEY)
        .map_or("", |word| word.to_str().expect("a word"))
}

pub(crate) async fn write(
    client: &mut Client,
    header: WriteHeader,
    parts: &[&[u8]],
    finish: bool,
) -> Result<WriteResult, Status> {
    let mut chunks = vec![WriteChunk {
        header: Some(header),
        ..WriteChunk::default()
    }];
    chunks.extend(parts.iter().map(|part| WriteChunk {
        data: part.to_vec().into(),
        ..WriteChunk::default()
    }));
    chunks.last_mut().expect("one").finish = finish;
    client
        .write(tokio_stream::iter(chunks))
        .await
        .map(tonic::Response::into_inner)
}

pub(crate) fn header(path: &str) -> WriteHeader {
    WriteHeader {
        path: path.into(),
        mode: 0o640,
        ..WriteHeader::default()
    }
}

async fn read(client: &mut Client, request: ReadRequest) -> Result<(FileInfo, Vec<u8>), Status> {
    let mut stream = client.read(request).await?.into_inner();
    let (mut info, mut data) = (None, Vec::new());
    while let Some(chunk) = stream.message().await? {
        assert!(chunk.data.len() <= STREAM_CHUNK_BYTES);
        info = info.or(chunk.info);
        data.extend_from_slice(&chunk.data);
    }
    Ok((info.expect("info comes first"), data))
}

pub(crate) async fn list(client: &mut Client, request: ListRequest) -> (Vec<FileInfo>, bool) {
    let mut stream = client.list(request).await.expect("listed").into_inner();
    let (mut entries, mut truncated) = (Vec::new(), false);
    while let Some(page) = stream.message().await.expect("a page") {
        entries.extend(page.entries);
        truncated = page.truncated;
    }
    (entries, truncated)
}

#[tokio::test]
async fn the_bridge_tells_what_it_is() {
    let workspace = Workspace::start().await;
    let info = workspace
        .ours()
        .await
        .info(InfoRequest {})
        .await
        .expect("info")
        .into_inner();
    assert_eq!(info.generation, skep_bridge_protocol::GENERATION);
    assert!(info.features.iter().any(|feature| feature == "exec"));
}

#[tokio::test]
async fn the_first_shell_that_can_be_executed_is_told() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    fs::create_dir_all(workspace.path("usr/bin")).expect("a directory");
    let order = ["/bin/bash", "/usr/bin/bash", "/bin/zsh", "/usr/bin/zsh", "/bin/sh"];
    // From the last one on, each is before those that are there already.
    for shell in order.into_iter().rev() {
        let place = workspace.path(shell);
        if shell != "/bin/sh" {
            let before = client.shell(Empty {}).await.expect("a shell").into_inner().path;
            fs::write(&place, "#!/bin/sh\n").expect("a shell");
            let told = client.shell(Empty {}).await.expect("a shell").into_inner().path;
            assert_eq!(told, before, "{shell} cannot be executed");
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("executable");
        }
        let told = client.shell(Empty {}).await.expect("a shell").into_inner().path;
        assert_eq!(told, shell);
    }
}

#[tokio::test]
async fn a_write_keeps_the_attributes_of_the_file_that_was_there() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let place = workspace.path("data/noted");
    fs::write(&place, "old").expect("a file");
    for (name, value) in [("user.note", "kept"), ("user.other", "")] {
        rustix::fs::setxattr(&place, name, value.as_bytes(), XattrFlags::empty()).expect("an attribute");
    }
    let inode = fs::metadata(&place).expect("there").ino();
    write(&mut client, header("noted"), &[b"new"], true)
        .await
        .expect("written");
    assert_eq!(fs::read(&place).expect("read"), b"new");
    assert_ne!(fs::metadata(&place).expect("there").ino(), inode, "it is another file");
    for (name, expected) in [("user.note", &b"kept"[..]), ("user.other", b"")] {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(&place, name, &mut value[..]).expect(name);
        assert_eq!(&value[..length], expected, "{name}");
    }
}

#[tokio::test]
async fn ranges_of_a_file_are_exact() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let data: Vec<u8> = (0..1_000_003_u32).map(|number| (number % 241) as u8).collect();
    fs::write(workspace.path("data/file"), &data).expect("a file");
    for (offset, length, expected) in [
        (0, 0, &data[..]),
        (5, 10, &data[5..15]),
        (999_999, 100, &data[999_999..]),
        (2_000_000, 0, &[]),
        (262_144, 262_145, &data[262_144..524_289]),
    ] {
        let request = ReadRequest {
            path: "file".into(),
            offset,
            length,
            ..ReadRequest::default()
        };
        let (info, read) = read(&mut client, request).await.expect("read");
        assert!(read == expected, "{offset} {length}: {} bytes", read.len());
        assert_eq!((info.size, info.name.as_slice()), (1_000_003, b"file".as_slice()));
    }
    fs::write(workspace.path("data/empty"), b"").expect("a file");
    let request = ReadRequest {
        path: "empty".into(),
        ..ReadRequest::default()
    };
    assert!(read(&mut client, request).await.expect("read").1.is_empty());
}

#[tokio::test]
async fn a_confined_read_follows_no_link_out() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    fs::create_dir_all(workspace.path("data/media/in")).expect("a directory");
    fs::create_dir_all(workspace.path("data/mediakit")).expect("a directory");
    fs::write(workspace.path("data/media/in/file"), b"fine").expect("a file");
    fs::write(workspace.path("data/mediakit/file"), b"secret").expect("a file");
    symlink("in/file", workspace.path("data/media/inside")).expect("a link");
    symlink("../mediakit/file", workspace.path("data/media/outside")).expect("a link");
    symlink("/etc", workspace.path("data/media/etc")).expect("a link");
    for (path, allowed) in [
        ("/data/media/in/file", true),
        ("/data/media/inside", true),
        ("/data/media/outside", false),
        ("/data/media/etc/passwd", false),
        ("/data/media/../mediakit/file", false),
        ("/data/mediakit/file", false),
    ] {
        let request = ReadRequest {
            path: path.into(),
            confine_below: b"/data/media".to_vec(),
            ..ReadRequest::default()
        };
        match read(&mut client, request).await {
            Ok((_, data)) => assert!(allowed && data == b"fine", "{path}"),
            Err(error) => assert!(!allowed && error.code() == Code::PermissionDenied, "{path}: {error}"),
        }
    }
    fs::rename(workspace.path("data/media"), workspace.path("data/kept")).expect("moved");
    symlink("/", workspace.path("data/media")).expect("a link");
    let request = ReadRequest {
        path: "/data/media/data/mediakit/file".into(),
        confine_below: b"/data/media".to_vec(),
        ..ReadRequest::default()
    };
    let error = read(&mut client, request).await.expect_err("the directory is a link");
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
}

#[tokio::test]
async fn a_write_is_whole_or_not_at_all() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let result = write(&mut client, header("dir/file"), &[b"one ", b"two"], true)
        .await
        .expect("written");
    assert_eq!(result.bytes_written, 7);
    let info = result.info.expect("info");
    assert_eq!((info.size, info.mode & 0o7777), (7, 0o640));
    let cut = write(&mut client, header("dir/file"), &[b"half"], false)
        .await
        .expect_err("cut");
    assert_eq!(cut.code(), Code::Aborted, "{cut}");
    assert_eq!(fs::read(workspace.path("data/dir/file")).expect("there"), b"one two");
    assert_eq!(fs::read_dir(workspace.path("data/dir")).expect("listed").count(), 1);
    let changed = WriteHeader {
        if_match: etag(&info),
        set_mode: Some(0o600),
        ..header("dir/file")
    };
    write(&mut client, changed.clone(), &[b"three"], true)
        .await
        .expect("it was as told");
    assert_eq!(
        fs::metadata(workspace.path("data/dir/file")).expect("there").mode() & 0o7777,
        0o600
    );
    let error = write(&mut client, changed, &[b"four"], true)
        .await
        .expect_err("it changed");
    assert_eq!((error.code(), reason_of(&error)), (Code::Aborted, reason::CHANGED));
    let any = WriteHeader {
        if_match: "*".into(),
        ..header("none")
    };
    assert_eq!(
        write(&mut client, any, &[b"x"], true)
            .await
            .expect_err("none there")
            .code(),
        Code::Aborted
    );
    assert_eq!(fs::read(workspace.path("data/dir/file")).expect("there"), b"three");
}

#[tokio::test]
async fn of_many_writers_with_the_same_tag_one_writes() {
    let workspace = Workspace::start().await;
    let client = workspace.ours().await;
    for _ in 0..10 {
        let begun = write(&mut client.clone(), header("file"), &[b"begun"], true).await;
        let tag = etag(&begun.expect("written").info.expect("info"));
        let writers = (0..16).map(|_| {
            let (mut client, if_match) = (client.clone(), tag.clone());
            async move {
                let header = WriteHeader {
                    if_match,
                    ..header("file")
                };
                write(&mut client, header, &[b"changed"], true).await
            }
        });
        let mut written = futures::future::join_all(writers).await;
        written.retain(|result| match result {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(reason_of(error), reason::CHANGED, "{error}");
                false
            }
        });
        assert_eq!(written.len(), 1, "the others are told");
    }
}

#[tokio::test]
async fn names_that_are_no_text_and_links_are_told_as_they_are() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let name = b"/data/\xff\xfe name".to_vec();
    let head = WriteHeader {
        path: name.clone(),
        ..header("")
    };
    write(&mut client, head, &[b"x"], true).await.expect("written");
    symlink("/etc", workspace.path("data/etc")).expect("a link");
    symlink("nowhere", workspace.path("data/gone")).expect("a link");
    let (entries, truncated) = list(
        &mut client,
        ListRequest {
            path: "/data".into(),
            ..ListRequest::default()
        },
    )
    .await;
    let names: Vec<&[u8]> = entries.iter().map(|entry| entry.name.as_slice()).collect();
    assert_eq!(
        (names, truncated),
        (vec![b"etc".as_slice(), b"gone", b"\xff\xfe name"], false)
    );
    assert!(entries[0].target_is_directory && entries[0].link_target == b"/etc" && !entries[1].target_is_directory);
    assert_eq!(entries[2].path, name);
    let stat = |path: &str, follow| StatRequest {
        path: path.into(),
        follow,
    };
    let followed = client.stat(stat("etc", true)).await.expect("there").into_inner();
    assert_eq!(
        (followed.mode & 0o170_000, followed.name.as_slice()),
        (0o040_000, b"etc".as_slice())
    );
    let dangling = client.stat(stat("gone", true)).await.expect("itself").into_inner();
    assert_eq!(
        (dangling.mode & 0o170_000, dangling.link_target.as_slice()),
        (0o120_000, b"nowhere".as_slice())
    );
    assert_eq!(
        client.stat(stat("/", true)).await.expect("root").into_inner().name,
        b"/"
    );
    let through = list(
        &mut client,
        ListRequest {
            path: "/data/etc".into(),
            ..ListRequest::default()
        },
    )
    .await
    .0;
    assert_eq!(through[0].path, b"/data/etc/group");
}

#[tokio::test]
async fn pages_of_a_large_directory_join_without_gap_or_repeat() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    fs::create_dir(workspace.path("data/many")).expect("a directory");
    for number in 0..3000 {
        fs::write(workspace.path(&format!("data/many/{number:05}")), b"").expect("a file");
    }
    let (mut seen, mut after) = (Vec::new(), Vec::new());
    loop {
        let request = ListRequest {
            path: "many".into(),
            after,
            limit: 700,
            ..ListRequest::default()
        };
        let (entries, truncated) = list(&mut client, request).await;
        after = entries.last().expect("some").name.clone();
        seen.extend(
            entries
                .into_iter()
                .map(|entry| String::from_utf8(entry.name).expect("a text")),
        );
        if !truncated {
            break;
        }
    }
    assert_eq!(seen, (0..3000).map(|number| format!("{number:05}")).collect::<Vec<_>>());
    let error = client
        .list(ListRequest {
            path: "/etc/passwd".into(),
            ..Default::default()
        })
        .await
        .expect_err("a file");
    assert_eq!(reason_of(&error), reason::NOT_A_DIRECTORY);
}

#[tokio::test]
async fn changes_of_names_and_modes() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    client
        .make_directory(MakeDirectoryRequest {
            path: "a/b".into(),
            mode: 0o700,
        })
        .await
        .expect("made");
    write(&mut client, header("a/b/file"), &[b"text"], true)
        .await
        .expect("written");
    symlink("file", workspace.path("data/a/b/link")).expect("a link");
    client
        .copy(CopyRequest {
            from: "a".into(),
            to: "copy".into(),
        })
        .await
        .expect("copied");
    assert_eq!(fs::read(workspace.path("data/copy/b/file")).expect("copied"), b"text");
    assert_eq!(
        fs::read_link(workspace.path("data/copy/b/link"))
            .expect("a link")
            .as_os_str(),
        "file"
    );
    let below = CopyRequest {
        from: "a".into(),
        to: "a/b/c".into(),
    };
    assert_eq!(
        client.copy(below).await.expect_err("below itself").code(),
        Code::InvalidArgument
    );
    let change = ChangeModeRequest {
        path: "copy/b/file".into(),
        mode: 0o4755,
        uid: Some(1000),
        gid: None,
    };
    client.change_mode(change).await.expect("changed");
    let metadata = fs::metadata(workspace.path("data/copy/b/file")).expect("there");
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o4755, 1000, 0)
    );
    let remove = |recursive| RemoveRequest {
        path: "a".into(),
        recursive,
    };
    let error = client.remove(remove(false)).await.expect_err("not empty");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::FailedPrecondition, reason::NOT_EMPTY)
    );
    client.remove(remove(true)).await.expect("removed");
    client.remove(remove(true)).await.expect("also when there is nothing");
    client
        .rename(RenameRequest {
            from: "copy".into(),
            to: "a".into(),
            only_in_place: false,
        })
        .await
        .expect("renamed");
    assert!(workspace.path("data/a/b/file").exists());
}

async fn archive_out(client: &mut Client, paths: &[&str]) -> Vec<u8> {
    let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let mut stream = client
        .archive_out(ArchiveOutRequest { paths })
        .await
        .expect("an archive")
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await.expect("a chunk") {
        bytes.extend_from_slice(&chunk.data);
    }
    bytes
}

async fn archive_in(client: &mut Client, path: &str, bytes: &[u8], finish: bool) -> Result<ArchiveInResult, Status> {
    let mut chunks: Vec<ArchiveInChunk> = vec![ArchiveInChunk {
        path: path.into(),
        ..ArchiveInChunk::default()
    }];
    chunks.extend(bytes.chunks(100_000).map(|data| ArchiveInChunk {
        data: data.to_vec().into(),
        ..Default::default()
    }));
    chunks.last_mut().expect("one").finish = finish;
    client
        .archive_in(tokio_stream::iter(chunks))
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_tree_goes_out_and_comes_back_as_it_was() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let long = format!("from/{}/{}", "d".repeat(120), "f".repeat(120));
    fs::create_dir_all(workspace.path("data/from/empty")).expect("a directory");
    fs::create_dir_all(workspace.path(&format!("data/{long}")).parent().expect("a parent")).expect("a directory");
    fs::write(workspace.path(&format!("data/{long}")), b"deep").expect("a file");
    fs::write(workspace.path("data/from/big"), vec![3; 3_000_000]).expect("a file");
    fs::set_permissions(workspace.path("data/from/big"), fs::Permissions::from_mode(0o2751)).expect("a mode");
    fs::set_permissions(workspace.path("data/from/empty"), fs::Permissions::from_mode(0o711)).expect("a mode");
    fs::hard_link(workspace.path("data/from/big"), workspace.path("data/from/same")).expect("a link");
    symlink("../outside", workspace.path("data/from/link")).expect("a link");
    let archive = archive_out(&mut client, &["from"]).await;
    let mut names = BTreeMap::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().expect("entries") {
        let entry = entry.expect("an entry");
        names.insert(entry.path().expect("a path").into_owned(), entry.header().entry_type());
    }
    assert_eq!(names.len(), 6, "{names:?}");
    let result = archive_in(&mut client, "to/here", &archive, true)
        .await
        .expect("unpacked");
    assert_eq!((result.entries, result.bytes), (6, 3_000_004));
    let at = |name: &str| fs::symlink_metadata(workspace.path(&format!("data/to/here/{name}"))).expect("there");
    assert_eq!(
        (at("big").mode() & 0o7777, at("empty").mode() & 0o7777, at("big").len()),
        (0o2751, 0o711, 3_000_000)
    );
    assert_eq!(at("big").ino(), at("same").ino());
    assert!(at("link").is_symlink());
    let mtime = fs::metadata(workspace.path("data/from/big")).expect("there").mtime();
    assert_eq!(at("big").mtime(), mtime);
    let one = archive_out(&mut client, &["from/big"]).await;
    let mut single = tar::Archive::new(one.as_slice());
    let mut entry = single
        .entries()
        .expect("entries")
        .next()
        .expect("one")
        .expect("an entry");
    assert_eq!(entry.path().expect("a path").as_os_str(), "big");
    let mut content = Vec::new();
    entry.read_to_end(&mut content).expect("read");
    assert_eq!(content.len(), 3_000_000);
}

fn tar_of(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let bytes = name.as_bytes();
        header.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        if *kind == tar::EntryType::Regular {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("appended");
        } else {
            header.set_size(0);
            header.set_link_name(content).expect("a link");
            header.set_cksum();
            builder.append(&header, std::io::empty()).expect("appended");
        }
    }
    builder.into_inner().expect("an archive")
}

#[tokio::test]
async fn an_archive_writes_nowhere_but_below_its_directory() {
    use tar::EntryType::{Link, Regular, Symlink};
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    fs::write(workspace.path("etc/target"), b"untouched").expect("a file");
    for entries in [
        vec![("../escape", Regular, "x")],
        vec![("a/../../escape", Regular, "x")],
        vec![("out", Symlink, "/etc"), ("out/target", Regular, "x")],
        vec![("up", Symlink, ".."), ("up/escape", Regular, "x")],
        vec![("out", Symlink, "/etc"), ("got", Link, "out/target")],
        vec![("got", Link, "../../etc/target")],
    ] {
        let error = archive_in(&mut client, "/data/in", &tar_of(&entries), true)
            .await
            .expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{entries:?}: {error}");
        fs::remove_dir_all(workspace.path("data/in")).expect("removed");
    }
    let over = tar_of(&[("file", Symlink, "/etc/target"), ("file", Regular, "own")]);
    archive_in(&mut client, "/data/in", &over, true)
        .await
        .expect("the link itself is replaced");
    assert_eq!(fs::read(workspace.path("data/in/file")).expect("there"), b"own");
    assert_eq!(fs::read(workspace.path("etc/target")).expect("there"), b"untouched");
    assert!(!workspace.path("data/escape").exists());
    fs::create_dir(workspace.path("data/real")).expect("a directory");
    symlink("../real", workspace.path("data/in/own-link")).expect("a link");
    let through = tar_of(&[("own-link/file", Regular, "x")]);
    archive_in(&mut client, "/data/in", &through, true)
        .await
        .expect("the workspace's own links are followed");
    assert!(workspace.path("data/real/file").exists());
}

#[tokio::test]
async fn a_cut_archive_is_an_error() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let archive = tar_of(&[("file", tar::EntryType::Regular, &"x".repeat(10_000))]);
    let cut = archive_in(&mut client, "in", &archive[..5000], false)
        .await
        .expect_err("cut");
    assert_eq!(cut.code(), Code::Aborted, "{cut}");
    let torn = archive_in(&mut client, "in", &archive[..5000], true)
        .await
        .expect_err("torn");
    assert_eq!(torn.code(), Code::InvalidArgument, "{torn}");
}
