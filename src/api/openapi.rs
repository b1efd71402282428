//! What the API says of itself: an OpenAPI 3.1 document (<https://spec.openapis.org/oas/v3.1.1>), made of the table by
//! which requests are routed and of the types that go over the socket, so that it cannot be of another version.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::routes;
use super::types::ApiError;

/// The schema of a type; what it is made of goes to the generator.
pub type Schema = fn(&mut SchemaGenerator) -> Value;

/// A route, as it is told of.
pub struct Route {
    /// In lower case.
    pub method: &'static str,
    /// Beneath `/v1`.
    pub path: &'static str,
    /// Of the operation, for programs that are generated.
    pub name: &'static str,
    /// What it does.
    pub says: &'static str,
    /// How it answers.
    pub kind: Kind,
    /// With what.
    pub answer: Option<Schema>,
    /// The body it takes.
    pub body: Option<Schema>,
    /// The query it takes: an object whose properties are the parameters.
    pub query: Option<Schema>,
}

/// How a request is answered that succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 200, with a JSON value.
    Json,
    /// 201, with one.
    Created,
    /// 202, with one; 200, where nothing was begun.
    Accepted,
    /// 200, with a JSON value a line, as they come.
    Lines,
    /// 200, with text, as Prometheus reads it.
    Text,
    /// 202, with nothing: whoever asks later is told what came of it.
    Asked,
    /// 204.
    Nothing,
}

/// The schema of a type, or where in the document it is.
pub fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// The document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes::table() {
        let item = paths
            .entry(format!("/v1{}", route.path))
            .or_insert_with(|| json!({}));
        item[route.method] = operation(&route, &mut generator);
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Godwit",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The API of a host's daemon. It is served on a unix socket, /run/godwit/api.sock, to root alone.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "by the unix socket; the name of the host does not count"}],
        "paths": paths,
        "components": {"schemas": generator.take_definitions(true)},
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut told = json!({
        "operationId": route.name,
        "summary": route.says,
        "responses": responses(route, generator),
    });
    let mut parameters = in_path(route.path);
    if let Some(query) = route.query {
        parameters.extend(in_query(&query(generator), generator));
    }
    if !parameters.is_empty() {
        told["parameters"] = parameters.into();
    }
    if let Some(body) = route.body {
        let content = json!({"application/json": {"schema": body(generator)}});
        told["requestBody"] = json!({"required": true, "content": content});
    }
    told
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let answer = route.answer.map(|schema| schema(generator));
    let with = |media: &str, says: &str| {
        let schema = answer.clone().unwrap_or_else(|| json!({"type": "string"}));
        json!({"description": says, "content": {media: {"schema": schema}}})
    };
    let mut all = match route.kind {
        Kind::Json => json!({"200": with("application/json", "Done.")}),
        Kind::Created => json!({"201": with("application/json", "Made.")}),
        Kind::Accepted => json!({
            "202": with("application/json", "It has begun."),
            "200": with("application/json", "Nothing was begun, as it was asked."),
        }),
        Kind::Lines => {
            json!({"200": with("application/x-ndjson", "A JSON value a line, as they come.")})
        }
        Kind::Text => json!({"200": with("application/openmetrics-text", "Done.")}),
        Kind::Asked => json!({"202": {"description": "It was asked."}}),
        Kind::Nothing => json!({"204": {"description": "Done."}}),
    };
    let error = json!({"application/json": {"schema": schema::<ApiError>(generator)}});
    all["default"] = json!({"description": "It was not carried out, and why.", "content": error});
    all
}

/// The parts of a path in braces.
fn in_path(path: &str) -> Vec<Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect()
}

/// The properties of a query.
fn in_query(query: &Value, generator: &SchemaGenerator) -> Vec<Value> {
    let name = query["$ref"]
        .as_str()
        .and_then(|path| path.rsplit('/').next());
    let object = name.and_then(|name| generator.definitions().get(name));
    let Some(properties) = object.and_then(|object| object["properties"].as_object()) else {
        return Vec::new();
    };
    let parameter = |(name, schema): (&String, &Value)| json!({"name": name, "in": "query", "required": false, "schema": schema});
    properties.iter().map(parameter).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use std::collections::BTreeSet;

    fn references<'a>(value: &'a Value, all: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                all.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, all));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, all)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_told_of_once_and_nothing_is_missing() {
        let document = document();
        let mut operations = BTreeSet::new();
        let mut told = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                told += 1;
                let name = operation["operationId"].as_str().unwrap();
                assert!(operations.insert(name), "{name} is there twice");
                let in_braces = path.matches('{').count();
                let parameters = operation["parameters"].as_array();
                let named =
                    parameters.map_or(0, |all| all.iter().filter(|p| p["in"] == "path").count());
                assert_eq!(named, in_braces, "{method} {path}");
            }
        }
        assert_eq!(told, routes::table().len());
        let mut all = BTreeSet::new();
        references(&document, &mut all);
        assert!(all.len() > 30, "{all:?}");
        for reference in all {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(
                document.pointer(pointer).is_some(),
                "{reference} is nowhere"
            );
        }
    }

    #[test]
    fn what_is_said_of_types_is_what_goes_over_the_socket() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["Name"]["type"], "string");
        assert_eq!(schemas["Restart"]["type"], "string");
        let create = &schemas["CreateRequest"];
        assert_eq!(create["additionalProperties"], false);
        assert_eq!(create["required"], json!(["name"]));
        let delete = &document["paths"]["/v1/containers/{name}"]["delete"];
        assert_eq!(delete["parameters"][1]["name"], "force");
        let logs = &document["paths"]["/v1/containers/{name}/logs"]["get"];
        assert!(logs["responses"]["200"]["content"]["application/x-ndjson"].is_object());
    }
}
