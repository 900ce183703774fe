# Partial: bucket, key, region and use_lockfile are told to `init`.
terraform {
  backend "s3" {}
}
