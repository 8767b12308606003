//! The OpenAPI document: made from the handlers, completed here with what all of them share
//! (path parts, errors, security), so that no handler has to repeat it.

use skep_api::{ErrorBody, ErrorCode};
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, ContentBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, PathItem, Ref,
    RefOr, Required, Response, ResponseBuilder, Schema, SecurityRequirement, ServerBuilder,
};
use utoipa::{PartialSchema, ToSchema};

/// The name of the one way to sign in.
const BEARER: &str = "bearer";

/// What the document starts from; routes add themselves.
pub fn base() -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of POST /auth/login, or an API key"))
        .build();
    let components = ComponentsBuilder::new()
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .schema(ErrorBody::name(), ErrorBody::schema())
        .schema(ErrorCode::name(), ErrorCode::schema())
        .build();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Skep")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("A persistent, isolated workspace for every bot"))
                .build(),
        )
        .servers(Some([
            ServerBuilder::new().url("/").build(),
            ServerBuilder::new().url("/api").build(),
        ]))
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, [])]))
        .build()
}

/// Adds what every route has: its path parts, its errors; and says which bodies are bytes.
pub fn complete(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            add_path_parts(path, operation);
            add_errors(path, &method, operation);
            mend_bytes(operation);
        }
    }
    // axum's wildcard is written without its star in a document.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths
        .into_iter()
        .map(|(path, item)| (path.replace("{*", "{"), item))
        .collect();
    document
}

/// The operations of a path.
pub fn operations(item: &mut PathItem) -> Vec<(HttpMethod, &mut Operation)> {
    [
        (HttpMethod::Get, item.get.as_mut()),
        (HttpMethod::Head, item.head.as_mut()),
        (HttpMethod::Post, item.post.as_mut()),
        (HttpMethod::Put, item.put.as_mut()),
        (HttpMethod::Patch, item.patch.as_mut()),
        (HttpMethod::Delete, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| operation.map(|operation| (method, operation)))
    .collect()
}

fn add_path_parts(path: &str, operation: &mut Operation) {
    let declared = operation.parameters.get_or_insert_default();
    declared.retain(|parameter| !matches!(parameter, RefOr::T(one) if one.parameter_in == ParameterIn::Path));
    for name in path.split(['{', '}']).skip(1).step_by(2) {
        declared.push(RefOr::T(path_part(name.trim_start_matches('*'))));
    }
}

fn path_part(name: &str) -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String);
    let (schema, example) = match name {
        "bot_id" | "operation_id" => (
            text.format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))),
            "0191f3c2-8f0e-7d3a-9c56-0123456789ab",
        ),
        "reference" => (text, "docker.io/library/debian:bookworm-slim"),
        _ => (text, "0191f3c2-8f0e-7d3a-9c56-0123456789ac"),
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(schema))
        .example(Some(serde_json::Value::from(example)))
        .build()
}

/// The errors that the shared checks give. Those of a route's own are named at its handler and stay.
fn add_errors(path: &str, method: &HttpMethod, operation: &mut Operation) {
    let is_open = operation
        .security
        .as_ref()
        .is_some_and(|needed| needed.iter().all(|one| *one == SecurityRequirement::default()));
    let has_body = operation.request_body.is_some();
    let about_bot = path.contains("{bot_id}");
    let mut errors: Vec<(&str, &str)> = vec![
        ("400", "Malformed id, query string, header or body"),
        ("500", "A defect or failure of ours"),
        ("503", "Store, runtime or bridge not reachable"),
    ];
    if !is_open || path == "/auth/login" {
        errors.push(("401", "No credential, or a bad one"));
    }
    if !is_open {
        errors.push(("403", "Not allowed"));
    }
    if has_body {
        errors.push(("413", "The body is too large"));
    }
    if path.contains('{') {
        errors.push((
            "404",
            if about_bot {
                "No such bot, or nothing of that kind of it"
            } else {
                "Nothing of that id"
            },
        ));
    }
    let makes_workspace = path == "/bots" && *method == HttpMethod::Post;
    if makes_workspace || (about_bot && *method != HttpMethod::Get) {
        errors.extend([
            ("409", "The workspace is in a state or an operation that excludes this"),
            ("429", "The workspace's queue of operations is full"),
            ("501", "This backend, or this version, cannot do it"),
            ("507", "No space left"),
        ]);
    }
    for (status, description) in errors {
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(error_response(description)));
    }
    give_bodies(operation);
}

/// An error that a handler names by status and words alone has the body of all errors.
fn give_bodies(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        let is_error = status.starts_with(['4', '5']);
        if let RefOr::T(response) = response
            && is_error
            && response.content.is_empty()
        {
            *response = error_response(&response.description);
        }
    }
}

/// Bodies and answers that are bytes: the macros take `Vec<u8>` for an array of numbers.
fn mend_bytes(operation: &mut Operation) {
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        body.content.iter_mut().for_each(mend_content);
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response.content.iter_mut().for_each(mend_content);
        }
    }
}

fn mend_content((media_type, content): (&String, &mut RefOr<Content>)) {
    if let RefOr::T(content) = content
        && media_type != "application/json"
        && matches!(content.schema, Some(RefOr::T(Schema::Array(_))))
    {
        let bytes = ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)));
        content.schema = Some(bytes.into());
    }
}

fn error_response(description: &str) -> Response {
    ResponseBuilder::new()
        .description(description)
        .content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(ErrorBody::name())))
                .build(),
        )
        .build()
}
