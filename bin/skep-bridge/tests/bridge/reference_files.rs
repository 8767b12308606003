//! The file methods of the reference's service.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use skep_bridge_protocol::bridgepb::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::calls::{Reference, until};
use crate::workspace::Workspace;

async fn write(client: &mut Reference, path: &str, content: &[u8]) -> Result<(), tonic::Status> {
    let request = WriteFileRequest {
        path: path.into(),
        content: content.to_vec().into(),
    };
    client.write_file(request).await.map(|_| ())
}

async fn read(client: &mut Reference, path: &str) -> Result<ReadFileResponse, tonic::Status> {
    let request = ReadFileRequest {
        path: path.into(),
        line_offset: 1,
        n_lines: 0,
    };
    client.read_file(request).await.map(tonic::Response::into_inner)
}

async fn list(client: &mut Reference, request: ListDirRequest) -> (Vec<String>, i32, bool) {
    let listed = client.list_dir(request).await.expect("listed").into_inner();
    let names = listed.entries.into_iter().map(|entry| match entry.summary.as_str() {
        "" => entry.path,
        summary => format!("{} {summary}", entry.path),
    });
    (names.collect(), listed.total_count, listed.truncated)
}

#[tokio::test]
async fn a_written_file_reads_back_with_parents_and_modes() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    write(&mut client, "a/b/note.txt", b"one\r\ntwo")
        .await
        .expect("written");
    let read = read(&mut client, "/data/a/b/note.txt").await.expect("read");
    assert_eq!(
        (read.content.as_str(), read.total_lines, read.binary),
        ("one\ntwo\n", 2, false)
    );
    let mode = |path| fs::metadata(workspace.path(path)).expect("there").mode() & 0o7777;
    assert_eq!(
        (mode("data/a"), mode("data/a/b"), mode("data/a/b/note.txt")),
        (0o750, 0o750, 0o600)
    );
    assert_eq!(
        fs::read_dir(workspace.path("data/a/b")).expect("listed").count(),
        1,
        "no temporary file stays"
    );
}

#[tokio::test]
async fn an_existing_file_keeps_its_mode_and_owner_and_a_link_is_written_through() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    fs::write(workspace.path("data/real"), b"old").expect("a file");
    fs::set_permissions(workspace.path("data/real"), fs::Permissions::from_mode(0o4751)).expect("a mode");
    std::os::unix::fs::chown(workspace.path("data/real"), Some(1000), Some(44)).expect("an owner");
    fs::set_permissions(workspace.path("data/real"), fs::Permissions::from_mode(0o4751)).expect("a mode");
    fs::hard_link(workspace.path("data/real"), workspace.path("data/other-name")).expect("a link");
    symlink("real", workspace.path("data/link")).expect("a link");
    write(&mut client, "link", b"new").await.expect("written");
    let metadata = fs::metadata(workspace.path("data/real")).expect("there");
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o4751, 1000, 44)
    );
    assert_eq!(fs::read(workspace.path("data/real")).expect("real"), b"new");
    assert_eq!(fs::read(workspace.path("data/other-name")).expect("other"), b"old");
    assert!(
        fs::symlink_metadata(workspace.path("data/link"))
            .expect("link")
            .is_symlink()
    );
    symlink("made/by-link", workspace.path("data/dangling")).expect("a link");
    write(&mut client, "dangling", b"x")
        .await
        .expect("written to where it leads");
    assert_eq!(fs::read(workspace.path("data/made/by-link")).expect("made"), b"x");
}

#[tokio::test]
async fn errors_name_the_path_and_the_reason() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    let error = read(&mut client, "missing").await.expect_err("missing");
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "/data/missing: no such file or directory")
    );
    assert_eq!(
        read(&mut client, "").await.expect_err("empty").message(),
        "path is required"
    );
    assert_eq!(
        read(&mut client, "").await.expect_err("empty").code(),
        Code::InvalidArgument
    );
    assert_eq!(
        read(&mut client, "/etc").await.expect_err("a directory").code(),
        Code::FailedPrecondition
    );
    assert_eq!(
        read(&mut client, "/dev/null").await.expect_err("a device").code(),
        Code::FailedPrecondition
    );
    assert_eq!(
        write(&mut client, "/etc", b"").await.expect_err("a directory").code(),
        Code::FailedPrecondition
    );
    assert_eq!(
        write(&mut client, "/proc/x", b"")
            .await
            .expect_err("not writable")
            .code(),
        Code::NotFound
    );
    assert_eq!(
        write(&mut client, "/dev/null", b"").await.expect_err("a device").code(),
        Code::FailedPrecondition
    );
    let long = "x".repeat(300);
    assert_eq!(
        write(&mut client, &long, b"").await.expect_err("too long").code(),
        Code::InvalidArgument
    );
    let full = write(&mut client, "/small/file", &vec![1; 3 << 20])
        .await
        .expect_err("no space");
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(
        fs::read_dir(workspace.path("data")).expect("listed").count(),
        0,
        "nothing is left behind"
    );
    let root = DeleteFileRequest {
        path: "/".into(),
        recursive: true,
    };
    assert_eq!(
        client.delete_file(root).await.expect_err("root").code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn a_listing_is_sorted_and_shows_links_themselves() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    for path in ["data/b/one", "data/b/two", "data/b/c/three", "data/a", "data/z"] {
        fs::create_dir_all(workspace.path(path).parent().expect("a parent")).expect("parents");
        fs::write(workspace.path(path), b"12345").expect("a file");
    }
    symlink("b", workspace.path("data/link")).expect("a link");
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        list(&mut client, ListDirRequest::default()).await,
        (names(&["a", "b", "link", "z"]), 4, false)
    );
    let recursive = ListDirRequest {
        recursive: true,
        ..ListDirRequest::default()
    };
    let all = ["a", "b", "b/c", "b/c/three", "b/one", "b/two", "link", "z"];
    assert_eq!(list(&mut client, recursive.clone()).await, (names(&all), 8, false));
    let page = ListDirRequest {
        offset: 2,
        limit: 3,
        ..recursive.clone()
    };
    assert_eq!(
        list(&mut client, page).await,
        (names(&["b/c", "b/c/three", "b/one"]), 8, true)
    );
    let closed = ListDirRequest {
        collapse_threshold: 3,
        ..recursive
    };
    let expected = ["a", "b", "b/ 4 items (not expanded)", "link", "z"];
    assert_eq!(list(&mut client, closed).await, (names(&expected), 5, false));
    let entries = client
        .list_dir(ListDirRequest::default())
        .await
        .expect("listed")
        .into_inner()
        .entries;
    assert_eq!(
        (entries[0].mode.as_str(), entries[0].size, entries[0].is_dir),
        ("-rw-r--r--", 5, false)
    );
    assert!(entries[1].is_dir && entries[1].mode.starts_with('d') && entries[2].mode == "Lrwxrwxrwx");
    assert!(
        entries[0].mod_time.ends_with('Z') && entries[0].mod_time.contains('T'),
        "{}",
        entries[0].mod_time
    );
    let missing = ListDirRequest {
        path: "nothing".into(),
        ..ListDirRequest::default()
    };
    assert_eq!(
        client.list_dir(missing).await.expect_err("missing").code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_listing_without_a_limit_ends_at_a_hundred_thousand() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    fs::create_dir(workspace.path("data/many")).expect("a directory");
    for number in 0..100_050 {
        fs::File::create(workspace.path(&format!("data/many/{number}"))).expect("a file");
    }
    let request = ListDirRequest {
        path: "many".into(),
        ..ListDirRequest::default()
    };
    let (names, total, truncated) = list(&mut client, request).await;
    assert_eq!((names.len(), total, truncated), (100_000, 100_050, true));
}

#[tokio::test]
async fn names_are_made_moved_and_removed() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    client.mkdir(MkdirRequest { path: "x/y".into() }).await.expect("made");
    client
        .mkdir(MkdirRequest { path: "x/y".into() })
        .await
        .expect("made again");
    write(&mut client, "x/y/file", b"1").await.expect("written");
    write(&mut client, "target", b"2").await.expect("written");
    let rename = RenameRequest {
        old_path: "x/y/file".into(),
        new_path: "target".into(),
    };
    client.rename(rename.clone()).await.expect("renamed over");
    assert_eq!(read(&mut client, "target").await.expect("read").content, "1\n");
    assert_eq!(client.rename(rename).await.expect_err("gone").code(), Code::NotFound);
    let stat = client
        .stat(StatRequest { path: "target".into() })
        .await
        .expect("there")
        .into_inner();
    assert_eq!(stat.entry.expect("an entry").size, 1);
    let remove = |recursive| DeleteFileRequest {
        path: "x".into(),
        recursive,
    };
    assert_eq!(
        client.delete_file(remove(false)).await.expect_err("not empty").code(),
        Code::FailedPrecondition
    );
    client.delete_file(remove(true)).await.expect("removed");
    assert!(!workspace.path("data/x").exists());
}

#[tokio::test]
async fn raw_streams_carry_any_bytes_and_empty_files() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    let data: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 253) as u8).collect();
    let mut chunks = vec![WriteRawChunk {
        path: "up/raw".into(),
        ..WriteRawChunk::default()
    }];
    chunks.extend(data.chunks(700_000).map(|data| WriteRawChunk {
        data: data.to_vec().into(),
        ..Default::default()
    }));
    let written = client
        .write_raw(tokio_stream::iter(chunks))
        .await
        .expect("written")
        .into_inner();
    assert_eq!(written.bytes_written, data.len() as i64);
    let mut stream = client
        .read_raw(ReadRawRequest { path: "up/raw".into() })
        .await
        .expect("a stream")
        .into_inner();
    let mut back = Vec::new();
    while let Some(chunk) = stream.message().await.expect("a chunk") {
        back.extend_from_slice(&chunk.data);
    }
    assert!(back == data, "{} bytes", back.len());
    assert_eq!(
        fs::metadata(workspace.path("data/up/raw")).expect("there").mode() & 0o7777,
        0o644
    );
    let empty = WriteRawChunk {
        path: "empty".into(),
        ..WriteRawChunk::default()
    };
    client
        .write_raw(tokio_stream::iter([empty]))
        .await
        .expect("an empty file");
    assert_eq!(fs::metadata(workspace.path("data/empty")).expect("there").len(), 0);
    let nothing = client
        .write_raw(tokio_stream::iter(Vec::<WriteRawChunk>::new()))
        .await
        .expect_err("no path");
    assert_eq!(nothing.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_aborted_upload_leaves_the_old_file_and_nothing_else() {
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await;
    write(&mut client, "file", b"old").await.expect("written");
    let (sender, receiver) = mpsc::channel(1);
    let mut uploader = client.clone();
    let upload = tokio::spawn(async move { uploader.write_raw(ReceiverStream::new(receiver)).await });
    for _ in 0..8 {
        let chunk = WriteRawChunk {
            path: "file".into(),
            data: vec![7; 100_000].into(),
        };
        sender.send(chunk).await.expect("an upload that goes on");
    }
    until("the upload has begun", || {
        fs::read_dir(workspace.path("data")).expect("listed").count() == 2
    })
    .await;
    upload.abort();
    until("the temporary file is gone", || {
        fs::read_dir(workspace.path("data")).expect("listed").count() == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        fs::read_to_string(workspace.path("data/file")).expect("a short text"),
        "old"
    );
    drop(sender);
}

#[tokio::test]
async fn a_message_of_sixteen_mebibytes_is_taken_and_a_longer_one_refused() {
    const MIB: usize = 1024 * 1024;
    let workspace = Workspace::start().await;
    let mut client = workspace.reference().await.max_encoding_message_size(20 * MIB);
    let long: Vec<u8> = (0..16 * MIB - MIB / 10).map(|number| (number % 251) as u8).collect();
    write(&mut client, "/data/long", &long).await.expect("15.9 MiB");
    assert!(fs::read(workspace.path("data/long")).expect("written") == long);
    let longer = vec![0; 16 * MIB + MIB / 10];
    let refused = write(&mut client, "/data/long", &longer).await.expect_err("16.1 MiB");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(fs::read(workspace.path("data/long")).expect("as it was") == long);
}
