#!/usr/bin/env bash
# Passwords of the servers, made once into a folder that git ignores: infra/secrets.sh FOLDER. What is there stays.
# clients.env   what whoever logs to MLflow sets
# mlflow.env    variables of the MLflow server
# postgres.env  variables of PostgreSQL
# s3.env        the S3 keys of LFM: buckets lfm and data
# mlflow-s3.env the S3 keys of the MLflow server: bucket mlflow
# s3.json       who may do what with which bucket, as SeaweedFS reads it; nobody may make or delete buckets
set -euo pipefail
folder=${1:?usage: infra/secrets.sh FOLDER}

secret() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

[[ -e $folder ]] && exit 0
umask 077
key() { secret | tr -dc '[:alnum:]' | head -c 12; }
key=lfm-$(key)
secret_key=$(secret)
mlflow_key=mlflow-$(key)
mlflow_secret_key=$(secret)
password=$(secret)
database=$(secret)

new=$folder.new # complete or absent
rm -rf "$new"
mkdir -p "$new"
# The last two: files go through the server. It would send clients to the S3 server, whose address they may not reach.
cat >"$new/clients.env" <<EOF
MLFLOW_TRACKING_USERNAME=admin
MLFLOW_TRACKING_PASSWORD=$password
MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD=false
MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false
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
LFM_S3_ACCESS_KEY_ID=$key
LFM_S3_SECRET_ACCESS_KEY=$secret_key
EOF
cat >"$new/mlflow-s3.env" <<EOF
AWS_ACCESS_KEY_ID=$mlflow_key
AWS_SECRET_ACCESS_KEY=$mlflow_secret_key
EOF
cat >"$new/s3.json" <<EOF
{"identities": [
  {"name": "lfm", "credentials": [{"accessKey": "$key", "secretKey": "$secret_key"}],
   "actions": ["Read:lfm", "Write:lfm", "List:lfm", "Read:data", "Write:data", "List:data"]},
  {"name": "mlflow", "credentials": [{"accessKey": "$mlflow_key", "secretKey": "$mlflow_secret_key"}],
   "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow"]}
]}
EOF
mv "$new" "$folder"
echo "passwords made in $folder" >&2
