//! Registries with TLS: whose certificates are taken.

use skep_runtime::RuntimeError;
use skep_runtime::images::{RegistryHost, RegistrySettings};
use skep_testkit::images::random_image;
use skep_testkit::registry::Registry;

use crate::setting::Setting;

fn trusting(registry: &Registry, ca_file: Option<std::path::PathBuf>) -> RegistrySettings {
    let host = RegistryHost {
        ca_file,
        ..RegistryHost::default()
    };
    RegistrySettings {
        hosts: [(registry.host(), host)].into(),
        docker_config: None,
    }
}

fn sentence(refused: Result<skep_runtime::ImageRecord, RuntimeError>) -> String {
    refused.expect_err("it was not refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_its_own_is_trusted_where_the_configuration_says_so() {
    let registry = Registry::start_with_tls();
    let reference = random_image(1, 1 << 20).push(&registry, "test/tls", "latest").await;
    let setting = Setting::with(trusting(&registry, registry.ca_file())).await;
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_nobody_is_refused_and_says_the_way() {
    let registry = Registry::start_with_tls();
    let reference = random_image(1, 1 << 10).push(&registry, "test/tls", "latest").await;
    let setting = Setting::with(trusting(&registry, None)).await;
    let told = sentence(setting.pull(&reference).await);
    assert!(told.contains("is not trusted") && told.contains("ca_file"), "{told}");
    setting.assert_nothing_left().await;
    // Another authority than the registry's.
    let other = Registry::start_with_tls();
    let setting = Setting::with(trusting(&registry, other.ca_file())).await;
    assert!(sentence(setting.pull(&reference).await).contains("is not trusted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_that_is_none_is_told() {
    let registry = Registry::start_with_tls();
    let reference = format!("{}/test/tls:latest", registry.host());
    let empty = tempfile::NamedTempFile::new().unwrap();
    for file in [empty.path().to_owned(), "/nonexistent/ca.pem".into()] {
        let setting = Setting::with(trusting(&registry, Some(file))).await;
        let told = sentence(setting.pull(&reference).await);
        assert!(told.contains("the ca_file that the configuration names"), "{told}");
    }
}
