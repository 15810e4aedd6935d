//! What policy was in force: remembered over restarts.

use super::{json, open};
use crate::ledger::store::StoreError;
use plimsoll_core::policy::{PolicyKey, PolicyObject, PolicyVersion};
use sqlx::{Connection, SqliteConnection};
use std::path::Path;

/// Everything that is remembered, by key.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<Vec<PolicyObject>, StoreError> {
    let rows: Vec<(String, String)> = sqlx::query_as("SELECT key, body FROM policy ORDER BY key")
        .fetch_all(connection)
        .await
        .map_err(|error| open::explain(path, error))?;
    let object = |(key, body): (String, String)| {
        let what = || format!("policy {key}");
        let unreadable = || StoreError::Unreadable { path: path.to_owned(), what: what() };
        let object = PolicyObject {
            key: key.parse().map_err(|_| unreadable())?,
            version: PolicyVersion::of(&body),
            body,
        };
        // Left out, it would be lifted with the first plan.
        object.decode().map_err(|_| unreadable())?;
        Ok(object)
    };
    rows.into_iter().map(object).collect()
}

/// Remembers `changed`, and forgets `removed`.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    changed: &[PolicyObject],
    removed: &[PolicyKey],
) -> Result<(), sqlx::Error> {
    let changed: Vec<_> = changed.iter().map(|object| (object.key.to_string(), &object.body)).collect();
    let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    // After a restart most of it is as it was: that is not written.
    sqlx::query(
        "INSERT INTO policy (key, body) SELECT value->>0, value->>1 FROM json_each(?) WHERE true
         ON CONFLICT (key) DO UPDATE SET body = excluded.body WHERE excluded.body <> body",
    )
    .bind(json(&changed)?)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("DELETE FROM policy WHERE key IN (SELECT value FROM json_each(?))")
        .bind(json(&removed)?)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}
