#!/usr/bin/env bash
# Passwords of the servers, made once into a folder that git ignores: infra/secrets.sh FOLDER. What is there stays.
# clients.env   what whoever logs to MLflow sets
# mlflow.env    variables of the MLflow server
# postgres.env  variables of PostgreSQL
# s3.env        the S3 keys alone
# s3.json       the same as SeaweedFS reads them
set -euo pipefail
folder=${1:?usage: infra/secrets.sh FOLDER}

secret() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

[[ -e $folder ]] && exit 0
umask 077
key=lfm-$(secret | tr -dc '[:alnum:]' | head -c 12)
secret_key=$(secret)
password=$(secret)
database=$(secret)

new=$folder.new # complete or absent
rm -rf "$new"
mkdir -p "$new"
cat >"$new/clients.env" <<EOF
MLFLOW_TRACKING_USERNAME=admin
MLFLOW_TRACKING_PASSWORD=$password
EOF
cat >"$new/mlflow.env" <<EOF
PGPASSWORD=$database
MLFLOW_AUTH_ADMIN_USERNAME=admin
MLFLOW_AUTH_ADMIN_PASSWORD=$password
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret)
EOF
cat >"$new/postgres.env" <<EOF
POSTGRES_PASSWORD=$database
EOF
cat >"$new/s3.env" <<EOF
AWS_ACCESS_KEY_ID=$key
AWS_SECRET_ACCESS_KEY=$secret_key
EOF
cat >"$new/s3.json" <<EOF
{"identities": [{"name": "lfm", "credentials": [{"accessKey": "$key", "secretKey": "$secret_key"}], "actions": ["Admin"]}]}
EOF
mv "$new" "$folder"
echo "passwords made in $folder" >&2
