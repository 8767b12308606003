//! `skep gpus`.

use crate::arguments::OutputForm;
use crate::client::Client;
use crate::failure::Result;
use crate::output::{self, Column, text};

const COLUMNS: &[Column] = &[
    Column {
        title: "NAME",
        read: |device| text(device, "name"),
    },
    Column {
        title: "VENDOR",
        read: |device| text(device, "vendor"),
    },
    Column {
        title: "CLASS",
        read: |device| text(device, "class"),
    },
    Column {
        title: "ALLOWED",
        read: |device| text(device, "allowed"),
    },
];

pub(crate) async fn list(client: &Client, form: OutputForm) -> Result<()> {
    output::print_list(form, &client.all_items("/gpus").await?, "name", COLUMNS)
}
