# What keeps a state from being lost or shown.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name = "mlinfra-prefect-state-dev-123456789012-eu-central-1"
  tags = { "mlinfra-prefect:environment" = "dev", "mlinfra-prefect:shared" = "true" }
}

run "keeps_old_versions_for_a_while" {
  command = plan
  assert {
    condition     = one(aws_s3_bucket_versioning.state.versioning_configuration).status == "Enabled"
    error_message = "Without versions an overwritten state is lost."
  }
  assert {
    condition     = one(one(aws_s3_bucket_lifecycle_configuration.state[0].rule).noncurrent_version_expiration).noncurrent_days == 30
    error_message = "Old versions of the ledger have to go."
  }
}

run "is_closed_to_the_public" {
  command = plan
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.state.block_public_acls, aws_s3_bucket_public_access_block.state.block_public_policy,
      aws_s3_bucket_public_access_block.state.ignore_public_acls, aws_s3_bucket_public_access_block.state.restrict_public_buckets,
    ])
    error_message = "All four blocks have to stand."
  }
}

run "speaks_tls_only" {
  command = plan
  assert {
    condition = alltrue([for statement in jsondecode(aws_s3_bucket_policy.state[0].policy).Statement : (
      statement.Effect == "Deny" && statement.Condition.Bool["aws:SecureTransport"] == "false" &&
      contains(statement.Resource, "arn:aws:s3:::mlinfra-prefect-state-dev-123456789012-eu-central-1/*")
    )])
    error_message = "Requests without TLS have to be denied."
  }
}

run "is_encrypted_by_s3_unless_there_is_a_key" {
  command = plan
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.state.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "Without a key S3's own has to be used."
  }
}

run "is_encrypted_with_the_key_where_there_is_one" {
  command = plan
  variables {
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/0a1b"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.state.rule).apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn
    error_message = "The key has to be used."
  }
}

run "outlives_a_hasty_destroy" {
  command = plan
  assert {
    condition     = aws_s3_bucket.state.force_destroy == false
    error_message = "A bucket with states in it has to survive a destroy."
  }
}

run "refuses_a_name_that_is_no_bucket" {
  command = plan
  variables {
    name = "State_Bucket"
  }
  expect_failures = [var.name]
}

run "refuses_to_keep_nothing" {
  command = plan
  variables {
    noncurrent_days = 0
  }
  expect_failures = [var.noncurrent_days]
}
