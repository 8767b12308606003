//! The examples of the OpenAPI document: every body and every answer has one, and it is what its schema says.

use std::collections::BTreeSet;

use chrono::DateTime;
use serde_json::{Value, json};

/// The document, as it is served.
struct Document(Value);

impl Document {
    fn served() -> Self {
        Self(serde_json::to_value(skep_server::http::openapi()).unwrap())
    }

    /// Every body and every answer: where it stands, its media type, its description.
    fn contents(&self) -> Vec<(String, &str, &Value)> {
        let mut contents = Vec::new();
        for (path, item) in members(&self.0["paths"]) {
            for (method, operation) in members(item) {
                let body = ("body", &operation["requestBody"]);
                let answers = members(&operation["responses"]).map(|(status, answer)| (status.as_str(), answer));
                for (of, described) in answers.chain([body]) {
                    for (media_type, content) in members(&described["content"]) {
                        contents.push((format!("{method} {path} {of}"), media_type.as_str(), content));
                    }
                }
            }
        }
        contents
    }

    /// What a reference leads to, or the schema itself.
    fn followed<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.0.pointer(reference.trim_start_matches('#')).unwrap(),
            None => schema,
        }
    }

    /// The schemas that hold together: what a reference leads to and all of `allOf`.
    fn parts<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.followed(schema);
        let mut parts = vec![schema];
        for part in elements(&schema["allOf"]) {
            parts.extend(self.parts(part));
        }
        parts
    }

    /// What is wrong with a value of this schema; `at` is where it stands.
    fn misfits(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let parts = self.parts(schema);
        let mut wrong: Vec<String> = parts
            .iter()
            .flat_map(|part| self.misfits_of_part(part, value, at))
            .collect();
        let known: BTreeSet<&String> = parts
            .iter()
            .flat_map(|part| members(&part["properties"]).map(|(name, _)| name))
            .collect();
        // A schema without properties is of an object that may have any, or of one that another schema describes.
        if !known.is_empty() {
            let unknown = members(value).filter(|(name, _)| !known.contains(name));
            wrong.extend(unknown.map(|(name, _)| format!("{at}.{name} is not known")));
        }
        wrong
    }

    fn misfits_of_part(&self, part: &Value, value: &Value, at: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let kinds = match &part["type"] {
            Value::Array(kinds) => kinds.iter().collect(),
            Value::Null => Vec::new(),
            kind => vec![kind],
        };
        if !kinds.is_empty() && !kinds.iter().any(|kind| is_of_kind(value, kind)) {
            wrong.push(format!("{at} is not of type {}: {value}", part["type"]));
        }
        if part["enum"].is_array() && !elements(&part["enum"]).any(|allowed| allowed == value) {
            wrong.push(format!("{at} is none of {}: {value}", part["enum"]));
        }
        if part["format"] == "date-time"
            && value
                .as_str()
                .is_some_and(|text| DateTime::parse_from_rfc3339(text).is_err())
        {
            wrong.push(format!("{at} is no time: {value}"));
        }
        if let (Some(minimum), Some(number)) = (part["minimum"].as_f64(), value.as_f64())
            && number < minimum
        {
            wrong.push(format!("{at} is below {minimum}: {value}"));
        }
        if value.is_object() {
            let missing = elements(&part["required"])
                .filter_map(Value::as_str)
                .filter(|name| value.get(name).is_none());
            wrong.extend(missing.map(|name| format!("{at}.{name} is missing")));
        }
        for (name, inner) in members(&part["properties"]) {
            if let Some(inner_value) = value.get(name) {
                wrong.extend(self.misfits(inner, inner_value, &format!("{at}.{name}")));
            }
        }
        for (number, element) in elements(value).enumerate() {
            wrong.extend(self.misfits(&part["items"], element, &format!("{at}[{number}]")));
        }
        if part["oneOf"].is_array() {
            let misfits: Vec<_> = elements(&part["oneOf"])
                .map(|one| self.misfits(one, value, at))
                .collect();
            if misfits.iter().filter(|misfits| misfits.is_empty()).count() != 1 {
                wrong.push(format!("{at} does not fit exactly one of its forms: {misfits:?}"));
            }
        }
        wrong
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn is_of_kind(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("no type of JSON: {other}"),
    }
}

fn is_json(media_type: &str) -> bool {
    ["application/json", "text/event-stream"].contains(&media_type)
}

#[test]
fn every_body_and_every_answer_has_an_example() {
    let document = Document::served();
    let contents = document.contents();
    let described: Vec<_> = contents
        .iter()
        .filter(|(_, media_type, _)| is_json(media_type))
        .collect();
    assert!(described.len() > 200, "only {} bodies and answers", described.len());
    let without: Vec<_> = described
        .iter()
        .filter(|(_, _, content)| {
            let schema = document.followed(&content["schema"]);
            ["example", "examples"]
                .iter()
                .all(|key| content[key].is_null() && schema[key].is_null())
        })
        .map(|(at, media_type, _)| format!("{at} {media_type}"))
        .collect();
    assert!(without.is_empty(), "without an example: {without:#?}");
}

#[test]
fn every_example_fits_its_schema() {
    let document = Document::served();
    let schemas = members(&document.0["components"]["schemas"]);
    let of_schemas = schemas.map(|(name, schema)| (name.clone(), schema, &schema["example"]));
    let contents = document.contents();
    let of_contents = contents
        .into_iter()
        .map(|(at, _, content)| (at, &content["schema"], &content["example"]));
    let examples: Vec<_> = of_schemas
        .chain(of_contents)
        .filter(|(_, _, example)| !example.is_null())
        .collect();
    assert!(examples.len() > 70, "only {} examples", examples.len());
    let wrong: Vec<_> = examples
        .into_iter()
        .flat_map(|(at, schema, example)| document.misfits(schema, example, &at))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        !document.0.to_string().contains("\"examples\":"),
        "examples that are not looked at"
    );
}

#[test]
fn what_does_not_fit_its_schema_is_found() {
    let document = Document(json!({"components": {"schemas": {"Named": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "at": {"type": ["string", "null"], "format": "date-time"}},
    }}}}));
    let named = json!({"$ref": "#/components/schemas/Named"});
    let counted = json!({"allOf": [named.clone(), {
        "type": "object",
        "required": ["count"],
        "properties": {"count": {"type": "integer", "minimum": 1}, "kind": {"type": "string", "enum": ["a", "b"]}},
    }]});
    let list = json!({"type": "array", "items": counted.clone()});
    let either = json!({"oneOf": [named.clone(), {"type": "null"}]});
    let free = json!({"type": "object"});
    for (schema, fitting) in [
        (&named, json!({"name": "x", "at": null})),
        (
            &counted,
            json!({"name": "x", "at": "2026-01-02T03:04:05Z", "count": 1, "kind": "b"}),
        ),
        (&list, json!([])),
        (&either, json!(null)),
        (&free, json!({"anything": [1]})),
    ] {
        assert_eq!(document.misfits(schema, &fitting, "it"), Vec::<String>::new());
    }
    for (schema, misfit) in [
        (&named, json!({})),
        (&named, json!("x")),
        (&named, json!({"name": null})),
        (&named, json!({"name": "x", "at": "yesterday"})),
        (&named, json!({"name": "x", "nome": "x"})),
        (&counted, json!({"name": "x"})),
        (&counted, json!({"count": 1})),
        (&counted, json!({"name": "x", "count": 0})),
        (&counted, json!({"name": "x", "count": 1.5})),
        (&counted, json!({"name": "x", "count": 1, "kind": "c"})),
        (&counted, json!({"name": "x", "count": 1, "cuont": 1})),
        (&list, json!([{"name": "x", "count": true}])),
        (&either, json!({"name": 1})),
        (&free, json!([])),
    ] {
        assert_eq!(document.misfits(schema, &misfit, "it").len(), 1, "{schema} {misfit}");
    }
}

#[test]
fn bytes_are_no_array_of_numbers() {
    let document = Document::served();
    let contents = document.contents();
    let of_bytes = ["application/octet-stream", "application/gzip", "application/x-tar"];
    let mut found = BTreeSet::new();
    for (at, media_type, content) in &contents {
        let schema = &content["schema"];
        if of_bytes.contains(media_type) {
            assert_eq!(schema, &json!({"type": "string", "format": "binary"}), "{at}");
            found.insert(*media_type);
        }
        if *media_type == "multipart/form-data" {
            let file = &document.followed(schema)["properties"]["file"];
            assert_eq!(
                (&file["type"], &file["format"]),
                (&json!("string"), &json!("binary")),
                "{at}"
            );
            found.insert(*media_type);
        }
    }
    assert_eq!(found.len(), of_bytes.len() + 1, "{found:?}");
}
