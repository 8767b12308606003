//! Generates the gRPC code from `proto/` with a compiler written in Rust: no `protoc` is needed.

use std::{env, fs, path::PathBuf};

use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/bridge.proto", "proto/workspace.proto"], ["proto"])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("surface.txt"), surface(&files))?;
    // What is streamed is handed on without a copy; names and paths are ordinary vectors.
    let generator = tonic_prost_build::configure();
    generator
        .bytes("data")
        .bytes("stdin_data")
        .bytes("content")
        .codec_path("crate::CountedCodec")
        .compile_fds(files)?;
    Ok(())
}

/// One line per method, field and enum value: what a test compares with the frozen `schema/<generation>.txt`.
fn surface(files: &FileDescriptorSet) -> String {
    let mut lines = Vec::new();
    for file in &files.file {
        let package = file.package();
        for service in &file.service {
            for method in &service.method {
                let stream = |streaming| if streaming { "stream " } else { "" };
                lines.push(format!(
                    "rpc {package}.{}.{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                ));
            }
        }
        for message in &file.message_type {
            describe_message(package, message, &mut lines);
        }
    }
    lines.sort();
    lines.join("\n") + "\n"
}

fn describe_message(parent: &str, message: &prost_types::DescriptorProto, lines: &mut Vec<String>) {
    let name = format!("{parent}.{}", message.name());
    for field in &message.field {
        lines.push(format!(
            "field {name} {} {} {:?} {:?}{}{}",
            field.number(),
            field.name(),
            field.label(),
            field.r#type(),
            field
                .type_name
                .as_deref()
                .map(|name| format!(" {name}"))
                .unwrap_or_default(),
            if field.proto3_optional() { " optional" } else { "" },
        ));
    }
    for enumeration in &message.enum_type {
        for value in &enumeration.value {
            lines.push(format!(
                "value {name}.{} {} {}",
                enumeration.name(),
                value.number(),
                value.name()
            ));
        }
    }
    for nested in &message.nested_type {
        describe_message(&name, nested, lines);
    }
}
