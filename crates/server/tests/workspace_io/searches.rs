//! Searching in files.

use serde_json::{Value, json};

use crate::Workspace;

async fn found(workspace: &Workspace, query: &str) -> Value {
    let answer = workspace.get(&format!("/fs/search?{query}")).await;
    answer.expect_status(200).json()
}

fn places(result: &Value) -> Vec<String> {
    let matches = result["matches"].as_array().unwrap();
    let place = |found: &Value| {
        format!(
            "{}:{}:{}",
            found["path"].as_str().unwrap(),
            found["line"],
            found["column"]
        )
    };
    matches.iter().map(place).collect()
}

#[tokio::test]
async fn lines_that_match_are_found_in_the_order_of_a_listing() {
    let workspace = Workspace::start().await;
    workspace
        .output_of(
            "mkdir -p src/deep; printf 'one\\nfn two\\r\\n\\303\\251 fn\\n' > src/b.rs; printf 'fn a' > src/deep/a.txt; \
             printf 'FN\\n' > src/c.rs",
        )
        .await;
    let all = found(&workspace, "path=/data&pattern=fn%5Cb").await;
    assert_eq!(
        places(&all),
        ["/data/src/b.rs:2:1", "/data/src/b.rs:3:3", "/data/src/deep/a.txt:1:1"]
    );
    assert_eq!(all["matches"][0]["text"], "fn two");
    assert_eq!(all["truncated"], false);
    let any_case = found(&workspace, "pattern=%5Efn&ignore_case=true&glob=*.rs").await;
    assert_eq!(places(&any_case), ["/data/src/b.rs:2:1", "/data/src/c.rs:1:1"]);
    let below = found(&workspace, "path=/data/src&pattern=fn&glob=deep/*").await;
    assert_eq!(places(&below), ["/data/src/deep/a.txt:1:1"]);
    let one_file = found(&workspace, "path=/data/src/b.rs&pattern=one").await;
    assert_eq!(places(&one_file), ["/data/src/b.rs:1:1"]);
    assert_eq!(
        found(&workspace, "pattern=nowhere").await,
        json!({"matches": [], "truncated": false})
    );
}

#[tokio::test]
async fn there_are_no_more_lines_than_were_asked_for_and_that_is_told() {
    let workspace = Workspace::start().await;
    workspace.output_of("seq 1 5000 | sed 's/^/line /' > numbers").await;
    let three = found(&workspace, "pattern=line&max_results=3").await;
    assert_eq!((places(&three).len(), &three["truncated"]), (3, &json!(true)));
    let exact = found(&workspace, "pattern=line&max_results=5000").await;
    assert_eq!((places(&exact).len(), &exact["truncated"]), (5000, &json!(false)));
    let unasked = found(&workspace, "pattern=line").await;
    assert_eq!((places(&unasked).len(), &unasked["truncated"]), (1000, &json!(true)));
}

#[tokio::test]
async fn what_is_no_text_neither_hangs_nor_ends_a_search() {
    let workspace = Workspace::start().await;
    workspace
        .output_of(
            "mkfifo pipe; ln -s loop loop; ln -s / root; printf 'needle\\0' > binary; printf '\\377 needle\\n' > latin; \
             head -c 3000000 /dev/zero | tr '\\0' x > long; printf '\\nneedle\\n' >> long; \
             printf needle > last; yes needle | head -c 20000 | tr -d '\\n' > wide",
        )
        .await;
    let result = found(&workspace, "path=/data&pattern=needle").await;
    assert_eq!(places(&result), ["/data/last:1:1", "/data/latin:1:3", "/data/wide:1:1"]);
    assert_eq!(result["matches"][1]["text"], "\u{fffd} needle");
    assert_eq!(result["matches"][2]["text"].as_str().unwrap().len(), 4096);
}

#[tokio::test]
async fn what_cannot_be_searched_is_told() {
    let workspace = Workspace::start().await;
    let refused = async |query: &str, status: u16, code: &str| {
        let answer = workspace
            .get(&format!("/fs/search?{query}"))
            .await
            .expect_status(status)
            .json();
        assert_eq!(answer["code"], code, "{query}: {answer}");
        answer["message"].as_str().unwrap().to_owned()
    };
    refused("path=/data", 400, "invalid_argument").await;
    let message = refused("pattern=(", 400, "invalid_argument").await;
    assert!(message.contains("pattern"), "{message}");
    let message = refused("pattern=x&glob=%5B", 400, "invalid_argument").await;
    assert!(message.contains("glob"), "{message}");
    refused("pattern=a%5Cnb", 400, "invalid_argument").await;
    refused("path=/data/nothing&pattern=x", 404, "not_found").await;
    refused("path=/dev/null&pattern=x", 400, "invalid_path").await;
    refused(&format!("pattern={}", "x".repeat(5000)), 400, "invalid_argument").await;
}
