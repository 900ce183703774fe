data "aws_partition" "this" {}

locals {
  arn = "arn:${data.aws_partition.this.partition}:s3:::${var.name}" # known when planning
}

# Mailboxes of nodes, checkpoints and the agent: what training code can reach, and so nothing that is trusted by name.
#trivy:ignore:AVD-AWS-0090 Blocks are named by their content and indexes are rewritten each second: old versions would be a cost and no help.
#trivy:ignore:AVD-AWS-0089 Who read what is CloudTrail's to tell; access logs need a second bucket and are billed at rest.
resource "aws_s3_bucket" "artifacts" {
  bucket        = var.name
  force_destroy = var.force_destroy
  tags          = var.tags
}

resource "aws_s3_bucket_server_side_encryption_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id
  rule {
    bucket_key_enabled = var.kms_key_arn != ""
    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == "" ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn == "" ? null : var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket                  = aws_s3_bucket.artifacts.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_policy" "artifacts" {
  count  = var.emulated ? 0 : 1
  bucket = aws_s3_bucket.artifacts.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [local.arn, "${local.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
  # S3 answers a conflict to one of two changes of a bucket's rules at a time.
  depends_on = [aws_s3_bucket_public_access_block.artifacts]
}

# Its creation takes most of a minute: the provider reads it until ten answers are the same.
resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  count  = var.emulated ? 0 : 1
  bucket = aws_s3_bucket.artifacts.id
  rule {
    id     = "mailboxes"
    status = "Enabled"
    filter {
      prefix = "nodes/"
    }
    expiration {
      days = var.node_days
    }
  }
  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}
